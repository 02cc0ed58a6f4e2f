"""Music to start with: public-domain scores played by a SoundFont."""

from Libraries.DemoMusic.Corpus import ENSEMBLES, DemoMusicConfig, render_demo_music
