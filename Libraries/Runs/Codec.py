"""What a diffusion is about: a codec turns spectrograms into what diffuses, and back.

Every space of the settings has one: spectrograms themselves (`SpectrogramCodec`), the latents of an
autoencoder (`Autoencoding.LatentCodec`), small spectrograms (`Upsampling.LowResolutionCodec`).
"""

from collections.abc import Iterable
from typing import Protocol, Self

import torch
from torch import Tensor

from Libraries.Runs.Settings import Settings


class Codec(Protocol):
    """The one face of all codecs."""

    bounded: bool  # whether what diffuses has the range of spectrograms, to which samplers clamp x0
    made_of: tuple[str, ...]  # further parts of the settings in which an interrupted diffusion has to agree

    @classmethod
    def open(
        cls, settings: Settings, device: torch.device | None = None, requires: dict[str, str] | None = None
    ) -> Self:
        """Return the codec of these settings; `requires` is the record of a run that was trained with it."""

    @staticmethod
    def prepare(settings: Settings) -> None:
        """Train the model that the codec needs, if there is none yet."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C', F', T') of what diffuses."""

    @property
    def stride(self) -> tuple[int, int]:
        """Spectrogram rows per row of what diffuses, and frames per frame."""

    @property
    def requires(self) -> dict[str, str]:
        """The record of the run that a diffusion hangs on; empty if it hangs on none."""

    def encode(self, x0: Tensor) -> Tensor:
        """Return what diffuses, (B, C', F', T'), of spectrograms x0 (B, C, F, T)."""

    def decode(self, x: Tensor, seeds: Iterable[int] | None = None) -> Tensor:
        """Return spectrograms (B, C, F, T) of what diffuses; one seed per clip, for codecs that draw."""

    def editor(self, editor):
        """Return an editor of spectrograms that works by an `Editor` of what diffuses."""


class SpectrogramCodec:
    """The identity: spectrograms themselves diffuse."""

    bounded = True
    made_of = ()
    stride = (1, 1)
    requires: dict[str, str] = {}  # noqa: RUF012 - nothing is ever added

    def __init__(self, shape: tuple[int, int, int]):
        self.shape = shape

    @classmethod
    def open(
        cls, settings: Settings, device: torch.device | None = None, requires: dict[str, str] | None = None
    ) -> "SpectrogramCodec":
        """Return the codec of these settings; it needs no device and no other run."""
        return cls(settings.spectrogram.shape)

    @staticmethod
    def prepare(settings: Settings) -> None:
        """Do nothing: spectrograms need no other model."""

    def encode(self, x0: Tensor) -> Tensor:
        """Return x0 (B, C, F, T)."""
        return x0

    def decode(self, x: Tensor, seeds: Iterable[int] | None = None) -> Tensor:
        """Return x (B, C, F, T)."""
        return x

    def editor(self, editor):
        """Return the editor itself."""
        return editor
