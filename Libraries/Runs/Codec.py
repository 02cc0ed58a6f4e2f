"""Codecs between spectrograms and the tensors that a diffusion model works on.

Every space of the settings has a codec: spectrograms themselves (`SpectrogramCodec`), the latents of an
autoencoder (`Autoencoding.LatentCodec`) or small spectrograms (`Upsampling.LowResolutionCodec`).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor

from Libraries.Runs.Settings import Settings


class Codec(Protocol):
    """The interface of all codecs."""

    bounded: bool  # whether encoded tensors have the range of spectrograms, to which samplers clamp x0
    made_of: tuple[str, ...]  # further settings that must not change when a diffusion resumes
    run_dir: Path | None  # of the model that it decodes with

    @classmethod
    def open(
        cls, settings: Settings, device: torch.device | None = None, requires: dict[str, str] | None = None
    ) -> Self:
        """Return the codec of these settings; `requires` is its record in a run that was trained with it."""

    @staticmethod
    def prepare(settings: Settings) -> None:
        """Train the model that the codec needs to its end, if none is finished."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C', F', T') of an encoded spectrogram."""

    @property
    def stride(self) -> tuple[int, int]:
        """Spectrogram rows per encoded row, and frames per encoded frame."""

    @property
    def requires(self) -> dict[str, str]:
        """The record of the run that a diffusion depends on; empty if there is none."""

    def encode(self, x0: Tensor) -> Tensor:
        """Encode spectrograms x0 (B, C, F, T) to (B, C', F', T')."""

    def decode(self, x: Tensor, seeds: Iterable[int] | None = None) -> Tensor:
        """Decode x (B, C', F', T') to spectrograms (B, C, F, T); one seed per clip for codecs that draw."""

    def editor(self, editor):
        """Return a spectrogram editor that uses an `Editor` of encoded tensors."""


class SpectrogramCodec:
    """The identity: the diffusion works on spectrograms themselves."""

    bounded = True
    made_of = ()
    run_dir = None
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
