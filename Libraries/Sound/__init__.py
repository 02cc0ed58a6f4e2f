"""Sound: audio files, transform, representations and their inverses, and what a round trip loses."""

from Libraries.Sound.Audio import AudioError, audio_info, find_audio_files, load_audio, save_audio
from Libraries.Sound.LowResolution import LowResolution, ConditioningConfig, LowResolutionConfig
from Libraries.Sound.Metrics import frechet_distance, log_mel_statistics, round_trip, round_trip_table
from Libraries.Sound.Spectrogram import Gain, Spectrogram
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Sound.Stereo import channel_correlation, downmix, load_channels, stereo_width
