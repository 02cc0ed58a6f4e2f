"""The low-resolution spectrogram of a cascade: how it is made and inverted, and the conditioning on it.

Two linear maps, nothing learned. `downsample` makes the low-resolution spectrogram y: the lower rows
("lower_bands"), or averages over boxes of rows and frames ("smaller"). `pseudo_inverse` is its right inverse,
downsample(pseudo_inverse(y)) = y, so the smallest change that makes any x0 consistent with y is
x0 + pseudo_inverse(y - downsample(x0)) (the range-null space decomposition of Wang et al. 2023, DDNM, eq. 9).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from Libraries.Sound.SpectrogramConfig import RANGES, SIGNED, SpectrogramConfig
from Libraries.Utils import require

KINDS = ("lower_bands", "smaller")
CONSISTENCY_ITERATIONS = 4
TYPICAL_STD = 0.5  # of normalised values
DETAIL_STD = 0.15  # of the detail that y lacks where it has values
LEAST_FACTOR = 4  # a low-resolution spectrogram has a quarter of the values or less


@dataclass(frozen=True)
class LowResolutionConfig:
    """Which low-resolution spectrogram the first model of a cascade makes; the values live in `Conf.py`.

    Raises:
        ValueError: an unknown kind, or a number below 1.
    """

    kind: str  # lower_bands | smaller
    kept_rows: int  # lower_bands only
    row_factor: int  # smaller only; rows averaged into one
    frame_factor: int  # smaller only; frames averaged into one

    def __post_init__(self):
        require(KINDS, kind=self.kind)
        for name in ("kept_rows", "row_factor", "frame_factor"):
            require("[1, inf)", **{name: getattr(self, name)})


@dataclass(frozen=True)
class ConditioningConfig:
    """How an upsampler is conditioned, in training and in use; the values live in `Conf.py`.

    The augmentation level is that of the noise on the conditioning (Ho et al. 2022, "Cascaded Diffusion
    Models", section 4): 0 is none, 1 noise alone.

    Raises:
        ValueError: a number is impossible.
    """

    max_augmentation: float  # highest level in training
    augmentation: float  # level in sampling, where the low-resolution spectrogram is generated and has errors
    restored_fraction: float  # of training clips, conditioned on any number of lower rows, for `Restoration`
    data_consistency: bool  # keep x0 consistent with the low-resolution spectrogram at every step

    def __post_init__(self):
        for name in ("max_augmentation", "augmentation", "restored_fraction"):
            require("[0, 1]", **{name: getattr(self, name)})
        if self.augmentation > self.max_augmentation:
            raise ValueError(
                f"augmentation={self.augmentation} is more than max_augmentation={self.max_augmentation}, "
                "the most that training has seen"
            )


class LowResolution:
    """The low-resolution form of one spectrogram: x0 is float (B, C, F, T), y is (B, C, f, t), on any device.

    T may be any multiple of `stride[1]`, so that music of any length can be upsampled.

    Raises:
        ValueError: the representation has signs or phases, which averages cancel; y has more than a quarter
            of the values; or its boxes do not divide the rows and frames.
    """

    def __init__(self, config: LowResolutionConfig, spectrogram: SpectrogramConfig):
        self.config, self.spectrogram = config, spectrogram
        C, F, T = spectrogram.shape
        if spectrogram.representation in SIGNED:
            raise ValueError(
                f"representation={spectrogram.representation!r} has signs or phases, which averages "
                "cancel; an upsampler needs bands, magnitude or mel"
            )
        if config.kind == "lower_bands":
            self.stride, self.shape = (1, 1), (C, config.kept_rows, T)
        else:
            self.stride = config.row_factor, config.frame_factor
            self.shape = (C, F // config.row_factor, T // config.frame_factor)
            if F % config.row_factor or T % config.frame_factor:
                raise ValueError(
                    f"a spectrogram of {F}x{T} does not divide into boxes of "
                    f"row_factor={config.row_factor} by frame_factor={config.frame_factor}"
                )
        if LEAST_FACTOR * self.shape[1] * self.shape[2] > F * T:
            raise ValueError(
                f"a low-resolution spectrogram of {self.shape[1]}x{self.shape[2]} has more than a quarter of "
                f"the values of {F}x{T}: take fewer kept_rows, or larger factors"
            )
        floor = RANGES[spectrogram.value_range][0]
        self.floor = 0.0 if spectrogram.value_range == "unit_variance" else float(floor)

    @property
    def fewest_rows(self) -> int:
        """Smallest number of lower rows that an upsampler is trained to be conditioned on."""
        return self.spectrogram.n_rows // LEAST_FACTOR

    @property
    def compared_from(self) -> float:
        """Frequency in Hz from which upsampled music is compared with the real; 0 if "smaller"."""
        above = self.config.kind == "lower_bands"
        return float(self.spectrogram.row_frequencies[self.config.kept_rows]) if above else 0.0

    def downsample(self, x0: Tensor) -> Tensor:
        """Return the low-resolution spectrogram y (B, C, f, t) of x0 (B, C, F, T)."""
        self._check("x0", x0, self.spectrogram.shape)
        if self.config.kind == "lower_bands":
            return x0[:, :, : self.config.kept_rows]
        return nnf.avg_pool2d(x0, self.stride)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Return the smallest x0 (B, C, F, T) with low resolution y: flat boxes, or zeros above the rows."""
        self._check("a low-resolution spectrogram", y, self.shape)
        if self.config.kind == "lower_bands":
            return nnf.pad(y, (0, 0, 0, self.spectrogram.n_rows - self.config.kept_rows))
        return nnf.interpolate(y, scale_factor=self.stride, mode="nearest")

    def project(self, x0: Tensor, y: Tensor) -> Tensor:
        """Return the x0 (B, C, F, T) closest to the given one whose low resolution is y (B, C, f, t)."""
        if self.config.kind == "lower_bands":
            return torch.cat([y, x0[:, :, self.config.kept_rows :]], dim=2)  # exactly, without rounding
        return x0 + self.pseudo_inverse(y - self.downsample(x0))

    def consistent(self, x0: Tensor, y: Tensor) -> Tensor:
        """Return x0 (B, C, F, T) projected to low resolution y, with values hardly outside the range.

        Clamping and projection alternate (projections onto convex sets), projection last, so that a
        sampler's clamp costs little of the consistency.
        """
        for _ in range(CONSISTENCY_ITERATIONS):
            x0 = self.project(self.limit(x0), y)
        return x0

    def limit(self, x0: Tensor) -> Tensor:
        """Return x0 clamped to the range of values."""
        return x0.clamp(*RANGES[self.spectrogram.value_range])

    def interpolate(self, y: Tensor) -> Tensor:
        """Return x0 (B, C, F, T) interpolated from y (B, C, f, t): bilinear, or silence above the kept rows.

        The part of y that smoothing removes is added back, so downsample(interpolate(y)) = y here too.
        """
        if self.config.kind == "lower_bands":
            empty = torch.full_like(self.pseudo_inverse(y), self.floor)
            return self.project(empty, y)
        self._check("a low-resolution spectrogram", y, self.shape)
        smooth = nnf.interpolate(y, scale_factor=self.stride, mode="bilinear", align_corners=False)
        return self.project(smooth, y)

    def enlarge(self, y: Tensor) -> Tensor:
        """Return y (B, C, f, t) at full size, for plots: as flat boxes, or as rows below silence."""
        return self.interpolate(y) if self.config.kind == "lower_bands" else self.pseudo_inverse(y)

    def attenuate(self, x0: Tensor, decibels: Tensor) -> Tensor:
        """Return x0 (B, C, F, T) as if the clips were `decibels` (B,) below the level at the range's top.

        With `value_range="unit_variance"` x0 is unchanged: its values do not depend on the level.
        """
        low, high = RANGES[self.spectrogram.value_range]
        if self.spectrogram.value_range == "unit_variance":
            return x0
        decibels = decibels.to(x0).view(-1, 1, 1, 1)
        if self.spectrogram.scale == "linear":
            return low + (x0 - low) * 10 ** (-decibels / 20)
        return (x0 - decibels * (high - low) / self.spectrogram.db_range).clamp(min=low)

    def conditioning_from_low_resolution(self, y: Tensor, augmentation: Tensor, noise: Tensor) -> Tensor:
        """Return the conditioning of an upsampler: y with noise, interpolated, and a plane of its level.

        Conditioning augmentation (Ho et al. 2022, "Cascaded Diffusion Models", section 4): the noise makes
        the upsampler tolerate errors of the first model. The last channel is 1 - augmentation where y has
        values and 0 elsewhere: a plane of the input, not an embedding, because it depends on position.

        Args:
            y: (B, C, f, t).
            augmentation: (B,), s of sqrt(1 - s²)·y + s·noise; 0 leaves y as it is, 1 noise alone.
            noise: like `y`, N(0, I).

        Returns:
            (B, C + 1, F, T).
        """
        noisy, reliability = _augmented(y, augmentation, noise)
        if self.config.kind == "lower_bands":
            plane = self.pseudo_inverse(reliability.expand_as(y[:, :1]))
            return torch.cat([self.pseudo_inverse(noisy), plane], dim=1)
        full = self.interpolate(noisy)
        return torch.cat([full, reliability.expand_as(full[:, :1])], dim=1)

    def conditioning_from_rows(self, x0: Tensor, rows: Tensor, augmentation: Tensor, noise: Tensor) -> Tensor:
        """Return the same conditioning, made of any number of the lowest rows of a full spectrogram.

        Args:
            x0: (B, C, F, T); its values above those rows have no effect.
            rows: int64 (B,), their number.
            augmentation: (B,); noise: like x0.
        """
        mask = (torch.arange(x0.shape[2], device=x0.device) < rows.view(-1, 1))[:, None, :, None]
        noisy, reliability = _augmented(x0, augmentation, noise)
        noisy, reliability = torch.where(mask, noisy, 0.0), torch.where(mask, reliability, 0.0)
        return torch.cat([noisy, reliability.expand_as(x0[:, :1])], dim=1)

    @staticmethod
    def estimate(conditioning: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best linear estimate of x0 and its expected error, value by value: (B, C, F, T) each.

        The estimate is Wiener's: E[x | y] = y·sqrt(1-s²)·d²/((1-s²)·d² + s²) for y = sqrt(1-s²)·x + s·noise
        and x of variance d²: all of y at s = 0, nothing of it at s = 1 or where y has no values. The variance
        of its error is d²·s²/((1-s²)·d² + s²), plus that of the detail that y does not contain.
        """
        noisy, s = conditioning[:, :-1], 1 - conditioning[:, -1:]
        signal = (1 - s.square()) * TYPICAL_STD**2
        estimate = noisy * signal / ((signal + s.square()) * (1 - s.square()).sqrt().clamp(min=1e-6))
        variance = TYPICAL_STD**2 * s.square() / (signal + s.square()) + DETAIL_STD**2
        return estimate, variance.sqrt().expand_as(estimate)

    @staticmethod
    def _check(name: str, tensor: Tensor, shape: tuple[int, int, int]) -> None:
        if tensor.ndim != 4 or tensor.shape[1:3] != shape[:2]:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; expected (B, {shape[0]}, {shape[1]}, T)"
            )


def _augmented(x: Tensor, augmentation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return sqrt(1 - s²)·x + s·noise (B, ...) and 1 - s (B, 1, 1, 1)."""
    s = augmentation.to(x).view(-1, 1, 1, 1)
    return (1 - s.square()).sqrt() * x + s * noise, 1 - s
