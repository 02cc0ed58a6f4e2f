"""A network that predicts phase differences between neighbouring bins from magnitudes.

Absolute phase is not local: shifting a sound by a millisecond changes the phase of every bin. Phase
differences along time and along frequency are local, so a convolutional network can learn them, and a heap
integrates them (`PhaseRetrieval.integrate_differences`). After Masuyama et al. 2020 (phase reconstruction
based on recurrent phase unwrapping with deep neural networks), who integrate them frame by frame.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from Libraries.Layers import (
    ACTIVATIONS,
    Downsample,
    FrequencyFeatures,
    ResBlock,
    fold,
    require_multiples,
    require_sizes,
    unfold,
    zero_init,
)
from Libraries.Sound.PhaseRetrieval import HANN_GAMMA, integrate_differences
from Libraries.Sound.SpectrogramConfig import BANKED, SIGNED, SpectrogramConfig
from Libraries.Utils import autocast, require

LEVEL_RANGE = 80.0  # dB below the clip's loudest bin that the network sees
NEPERS_PER_DB = math.log(10) / 20
CLIPS_PER_BATCH = 8
MIN_WEIGHT = 1e-6  # of a silent clip, in which there is nothing to learn
PGHI_LENGTH = 0.5  # of PGHI's vectors, so that the network's own soon outweigh them
INPUTS_PER_BIN = 5  # the level, and two angles as vectors


@dataclass(frozen=True)
class PhaseConfig:
    """The phase network and its training clips; the values live in `Conf.py`.

    Raises:
        ValueError: a setting is impossible; the sentence names it, its value and what is allowed.
    """

    channels: tuple[int, ...]  # width of each level, finest first; every level halves bins and frames
    blocks_per_level: int  # in each half; the coarsest level has twice as many
    fold_bins: int  # neighbouring bins that are folded into channels first
    frequency_features: int  # channels that give each bin its frequency
    norm_groups: int  # of GroupNorm; 1 normalises over all channels
    activation: str  # silu | gelu
    weight_power: float  # an error is weighted by the magnitudes to this power
    crop_frames: int  # per training clip
    mix: float  # fraction of training clips to which another clip is added

    def __post_init__(self):
        require_sizes(self)
        require(ACTIVATIONS, activation=self.activation)
        require("[1, inf)", blocks_per_level=self.blocks_per_level, fold_bins=self.fold_bins)
        require("[0, inf)", frequency_features=self.frequency_features, weight_power=self.weight_power)
        require("[2, inf)", crop_frames=self.crop_frames)
        require("[0, 1]", mix=self.mix)
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"channels={self.channels} must be one or more widths above 0")
        require_multiples(self.channels, norm_groups=self.norm_groups)


def relative_level(magnitude: Tensor) -> Tensor:
    """Return the level relative to each clip's loudest bin: (B, F, T) linear -> dB within [-80, 0], float32.

    A relative level does not depend on the loudness of its clip. Silence is at -80 dB.
    """
    loudest = magnitude.amax((1, 2), keepdim=True)
    ratio = magnitude / loudest.clamp(min=torch.finfo(torch.float32).tiny)
    return (20 * torch.log10(ratio.clamp(min=10 ** (-LEVEL_RANGE / 20)))).float()


class PhaseNet(nn.Module):
    """A small U-Net from levels to phase differences, as vectors on the unit circle.

    The network predicts residuals of what is known beforehand: along time, the advance of a bin's centre
    frequency over a hop; along frequency, the half turn that results because `stft` counts from a frame's
    first sample. PGHI's differences are an input beside the level and are added to the output, so a fresh
    network predicts what PGHI computes.

    Args:
        config: the settings.
        spectrogram: defines the bins.

    Raises:
        ValueError: the representation carries its own phase.
    """

    def __init__(self, config: PhaseConfig, spectrogram: SpectrogramConfig):
        super().__init__()
        if spectrogram.representation in SIGNED:
            raise ValueError(
                f"representation={spectrogram.representation!r} carries its own phase, so there is none to "
                "learn: choose magnitude, bands or mel"
            )
        self.config, self.n_bins, self.n_freqs = config, spectrogram.n_bins, spectrogram.n_freqs
        reach = spectrogram.hop_length * spectrogram.n_fft / (HANN_GAMMA * spectrogram.win_length**2)
        # PGHI's radians per dB of difference along frequency, and along time
        self.radians = (reach * NEPERS_PER_DB, -NEPERS_PER_DB / reach)
        self.advance = 2 * math.pi * spectrogram.hop_length / spectrogram.n_fft  # radians per hop, of bin 1
        self._build()

    def _build(self) -> None:
        config, widths = self.config, self.config.channels
        self.frequency_features = FrequencyFeatures(config.frequency_features)
        stem_channels = INPUTS_PER_BIN * config.fold_bins + config.frequency_features
        self.stem = nn.Conv2d(stem_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(self._blocks(width) for width in widths[:-1])
        pairs = list(pairwise(widths))
        self.coarser = nn.ModuleList(Downsample(fine, coarse) for fine, coarse in pairs)
        self.middle = nn.Sequential(self._blocks(widths[-1]), self._blocks(widths[-1]))
        self.finer = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in pairs)
        self.up = nn.ModuleList(self._blocks(width) for width in widths[:-1])
        self.out = nn.Sequential(
            ACTIVATIONS[config.activation](),
            zero_init(nn.Conv2d(widths[0], 4 * config.fold_bins, 3, padding=1)),
        )

    def _blocks(self, width: int) -> nn.Sequential:
        config = self.config
        return nn.Sequential(
            *(
                ResBlock(width, width, config.norm_groups, activation=config.activation)
                for _ in range(config.blocks_per_level)
            )
        )

    def forward(self, level: Tensor) -> Tensor:
        """Return the residual differences of levels (B, n_freqs, T) in dB from `relative_level`.

        Returns:
            (B, 4, n_bins, T) float32: cosine and sine along time, then along frequency, each from a bin to
            the next (those of the last frame and of the last bin are unused). The vectors have length 1.
        """
        T = level.shape[2]
        halvings = 2 ** (len(self.config.channels) - 1)
        inputs = self._inputs(level[:, : self.n_bins])
        x = F.pad(inputs, (0, -T % halvings, 0, -self.n_bins % (self.config.fold_bins * halvings)))
        x = self.stem(self.frequency_features(fold(x, (self.config.fold_bins, 1))))
        skips = []
        for blocks, coarser in zip(self.down, self.coarser, strict=True):
            skips.append(blocks(x))
            x = coarser(skips[-1])
        x = self.middle(x)
        for blocks, finer in zip(reversed(self.up), reversed(self.finer), strict=True):
            x = blocks(skips.pop() + F.interpolate(finer(x), scale_factor=(2.0, 2.0), mode="nearest"))
        x = unfold(self.out(x), (self.config.fold_bins, 1))[:, :, : self.n_bins, :T].float()
        x = x + PGHI_LENGTH * inputs[:, 1:]
        return torch.cat([F.normalize(part, dim=1) for part in x.chunk(2, dim=1)], dim=1)

    def _inputs(self, level: Tensor) -> Tensor:
        """Return (B, 5, F, T): the level, and PGHI's residual differences (trapezoidal rule) as vectors."""
        per_bin, per_frame = (_gradient(level, dim) for dim in (1, 2))
        d_time, d_freq = self.radians[0] * per_bin, self.radians[1] * per_frame
        d_time = (d_time + torch.cat([d_time[:, :, 1:], d_time[:, :, -1:]], dim=2)) / 2
        d_freq = (d_freq + torch.cat([d_freq[:, 1:], d_freq[:, -1:]], dim=1)) / 2
        scaled = level * (2 / LEVEL_RANGE) + 1  # [-1, 1]
        return torch.stack([scaled, d_time.cos(), d_time.sin(), d_freq.cos(), d_freq.sin()], dim=1)

    def residuals(self, phase: Tensor) -> tuple[Tensor, Tensor]:
        """Return the residual differences in radians, the target of `forward`, of phases (B, n_freqs, T).

        Returns:
            (B, n_bins, T - 1) along time and (B, n_bins - 1, T) along frequency.
        """
        phase = phase[:, : self.n_bins]
        return phase.diff(dim=2) - self._carrier(phase), phase.diff(dim=1) + math.pi

    def differences(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Return the phase differences, for `integrate_differences`, of an output (B, 4, n_bins, T).

        Returns:
            (B, n_freqs, T - 1) along time and (B, n_freqs - 1, T) along frequency in radians; 0 for bins
            above those of the representation.
        """
        d_time = torch.atan2(output[:, 1], output[:, 0])[:, :, :-1] + self._carrier(output)
        d_freq = torch.atan2(output[:, 3], output[:, 2])[:, :-1] - math.pi
        silent = self.n_freqs - self.n_bins
        return F.pad(d_time, (0, 0, 0, silent)), F.pad(d_freq, (0, 0, 0, silent))

    def _carrier(self, like: Tensor) -> Tensor:
        """Return the advance of each bin, (n_bins, 1), in radians per hop."""
        return self.advance * torch.arange(self.n_bins, device=like.device)[:, None]


class PhaseLoss:
    """What `Training.fit` minimises and reports for the phase: 1 - cos(error), weighted by magnitude.

    0 is exact, 1 is chance level. Only the differences that the heap will use count, one per bin; the
    magnitudes alone decide which. The weight of a difference is the product of its two magnitudes to the
    power `weight_power`, divided by the sum of the clip's weights: the heap carries an error at a loud bin on
    to all quieter ones, and errors at quiet bins are inaudible.
    """

    metric_names = ("val_loss", "val_time", "val_frequency")

    def __init__(self, config: PhaseConfig):
        self.config = config

    def __call__(self, model: nn.Module, batch: tuple[Tensor, ...], positions: Tensor) -> Tensor:
        """Return the loss of each clip, (B,).

        Args:
            batch: level in dB and phase in radians, (B, n_freqs, T) each, and `heap_edges`.
        """
        along_time, along_freq = self._errors(model, *batch)
        error, weight = (a + b for a, b in zip(along_time, along_freq, strict=True))
        return error / weight

    @torch.no_grad()
    def validate(self, model: nn.Module, batches) -> dict[str, float]:
        """Return the mean loss of all differences, of those along time, and of those along frequency."""
        device, rows = next(model.parameters()).device, []
        for batch in batches:
            parts = self._errors(model, *(part.to(device) for part in batch))
            both = [sum(values) for values in zip(*parts, strict=True)]
            rows.append(torch.stack([error / weight for error, weight in (both, *parts)]).cpu())
        return dict(zip(self.metric_names, torch.cat(rows, dim=1).double().mean(1).tolist(), strict=True))

    def _errors(
        self, model: nn.Module, level: Tensor, phase: Tensor, time_edges: Tensor, freq_edges: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return the sums of weighted errors and of weights, (B,) each, along time and along frequency."""
        network = getattr(model, "module", model)  # of DistributedDataParallel
        output, n_bins = model(level), network.n_bins
        d_time, d_freq = network.residuals(phase)
        weight = 10 ** (level[:, :n_bins] * (self.config.weight_power / 20))
        time_weight = weight[..., 1:] * weight[..., :-1] * time_edges[:, :n_bins]
        freq_weight = weight[:, 1:] * weight[:, :-1] * freq_edges[:, : n_bins - 1]
        return (
            _weighted_error(output[:, :2, :, :-1], d_time, time_weight),
            _weighted_error(output[:, 2:, :-1], d_freq, freq_weight),
        )


def _weighted_error(vector: Tensor, angle: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of weight·(1 - cos(error)) and of weight, (B,), for unit vectors (B, 2, F, T)."""
    error = 1 - vector[:, 0] * angle.cos() - vector[:, 1] * angle.sin()
    return (weight * error).sum((1, 2)), weight.sum((1, 2)).clamp(min=MIN_WEIGHT)


class LearnedPhase:
    """A trained network as `Spectrogram` takes it: magnitudes (B, n_freqs, T) -> phases in radians.

    The phase of a clip depends neither on the clip's level nor on its batch.

    Args:
        network: on the device that runs it.
        precision: no | bf16 | fp16, of the network.
    """

    def __init__(self, network: PhaseNet, precision: str):
        self.network, self.precision = network.eval(), precision
        self.run_dir: Path | None = None

    @torch.no_grad()
    def __call__(self, magnitude: Tensor) -> Tensor:
        """Return the phase (B, n_freqs, T) float32 of magnitudes on any device, with any number of frames.

        Raises:
            ValueError: the magnitudes have another number of bins.
        """
        n_freqs = self.network.n_freqs
        if magnitude.ndim != 3 or magnitude.shape[1] != n_freqs or magnitude.shape[2] < 2:
            raise ValueError(
                f"magnitude has shape {tuple(magnitude.shape)}; this phase network is for "
                f"(B, {n_freqs}, T) with 2 frames or more"
            )
        return torch.cat([self._phase(part) for part in magnitude.split(CLIPS_PER_BATCH)])

    def _phase(self, magnitude: Tensor) -> Tensor:
        device = next(self.network.parameters()).device
        with autocast(device, self.precision):
            output = self.network(relative_level(magnitude).to(device))
        d_time, d_freq = self.network.differences(output)
        return integrate_differences(magnitude, d_time, d_freq)


FITTING = ("representation", "sample_rate", "n_fft", "win_length", "hop_length", "n_bins")
FITTING_BANDS = ("n_bands", "narrow_frequency", "max_frequency", "band_inverse")


def misfits(theirs: SpectrogramConfig, ours: SpectrogramConfig) -> list[str]:
    """Return one phrase for each setting in which a network's spectrogram differs from ours."""
    names = FITTING + (FITTING_BANDS if ours.representation in BANKED else ())
    return [
        f"{name} is {getattr(theirs, name)} there and {getattr(ours, name)} here"
        for name in names
        if getattr(theirs, name) != getattr(ours, name)
    ]


def _gradient(x: Tensor, dim: int) -> Tensor:
    """Return what `torch.gradient` does along one axis; that one torch.export fixes to a batch size."""
    first, last = x.narrow(dim, 0, 2).diff(dim=dim), x.narrow(dim, -2, 2).diff(dim=dim)
    n = x.shape[dim] - 2
    return torch.cat([first, (x.narrow(dim, 2, n) - x.narrow(dim, 0, n)) / 2, last], dim=dim)
