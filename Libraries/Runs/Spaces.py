"""The spaces that a diffusion can work in, by the name in the settings, and the codec of each."""

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
        device: where its network shall run; None picks the best one.
        requires: of a trained run (`Run.conf`), the record of the very run that its codec is.

    Raises:
        ValueError: the autoencoder was trained on another spectrogram.
        CheckpointError: there is no such run, its training has not ended, or its weights are others now.
    """
    return CODECS[settings.space].open(settings, device, requires)


def prepare_space(settings: Settings) -> None:
    """Train the autoencoder or upsampler that the settings' space needs, if there is none yet."""
    CODECS[settings.space].prepare(settings)
