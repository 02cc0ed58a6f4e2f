"""Music to start with: public-domain scores played by a SoundFont."""

from Libraries.DemoMusic.Corpus import DemoMusicConfig, render_demo_music
from Libraries.DemoMusic.Ensembles import ENSEMBLES
from Libraries.DemoMusic.Playing import PlayingConfig
