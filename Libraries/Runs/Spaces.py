"""The codec of each space that a diffusion can work in, by the space's name in the settings."""

import torch

from Libraries.Runs.Autoencoding import LatentCodec
from Libraries.Runs.Codec import Codec, SpectrogramCodec
from Libraries.Runs.Settings import Settings
from Libraries.Runs.Upsampling import LowResolutionCodec

CODECS: dict[str, type[Codec]] = {
    "spectrogram": SpectrogramCodec,
    "latent": LatentCodec,
    "small": LowResolutionCodec,
}


def open_codec(
    settings: Settings, device: torch.device | None = None, requires: dict[str, str] | None = None
) -> Codec:
    """Return the codec of the settings' space.

    Args:
        device: where the codec's network runs; None picks the best one.
        requires: the codec's record in a trained run (`Run.conf`).

    Raises:
        ValueError: the autoencoder was trained on another spectrogram.
        CheckpointError: there is no such run, its training is not finished, or its weights have changed.
    """
    return CODECS[settings.space].open(settings, device, requires)


def prepare_space(settings: Settings) -> None:
    """Train the autoencoder or upsampler that the settings' space needs to its end, if none is finished.

    One whose training was interrupted, with the same settings and data, is resumed.
    """
    CODECS[settings.space].prepare(settings)
