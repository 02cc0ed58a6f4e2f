"""The small spectrogram of a cascade, the plain ways back to the full one, what an upsampler is told of it.

Two linear maps and nothing learned. `view` makes the small one: the lower rows ("lower_bands"), or averages
of boxes of rows and frames ("smaller"). `fill` is its right inverse, view(fill(v)) = v, and with it any x0 is
moved to a given view by the least change there is: x0 + fill(v - view(x0)).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from Libraries.Sound.SpectrogramConfig import RANGES, SIGNED, SpectrogramConfig
from Libraries.Utils import require

VIEWS = ("lower_bands", "smaller")
HOLD_TURNS = 4
TYPICAL_STD = 0.5  # of normalised values
DETAIL_STD = 0.15  # of what a view does not say of values that it covers
LEAST_FACTOR = 4  # a small spectrogram has a quarter of the values or less


@dataclass(frozen=True)
class ViewConfig:
    """Which small spectrogram the first model of a cascade makes; the values live in `Conf.py`.

    Raises:
        ValueError: an unknown kind, or a number below 1.
    """

    kind: str  # lower_bands | smaller
    kept_rows: int  # lower_bands only
    row_factor: int  # smaller only; rows averaged to one
    frame_factor: int  # smaller only; frames averaged to one

    def __post_init__(self):
        require(VIEWS, kind=self.kind)
        for name in ("kept_rows", "row_factor", "frame_factor"):
            require("[1, inf)", **{name: getattr(self, name)})


@dataclass(frozen=True)
class UpsamplerConfig:
    """How an upsampler learns and is used; the values live in `Conf.py`.

    Raises:
        ValueError: a number is impossible.
    """

    max_strength: float  # of the noise on the condition in training: 0 none, 1 nothing of it left
    strength: float  # of that noise where the small spectrogram was generated and errs
    restored_share: float  # of training clips, told the lower rows up to any row, for `Restoration`
    consistent: bool  # hold x0 to the small spectrogram that was given, at every step

    def __post_init__(self):
        for name in ("max_strength", "strength", "restored_share"):
            require("[0, 1]", **{name: getattr(self, name)})
        if self.strength > self.max_strength:
            raise ValueError(
                f"strength={self.strength} is more than max_strength={self.max_strength}, which is all that "
                "training has seen"
            )


class LowResolution:
    """The view of one spectrogram; tensors are float (B, C, F, T) and (B, C, f, t) on any device.

    T may be any multiple of `stride[1]`, so that music of any length can be upsampled.

    Raises:
        ValueError: the representation has signs or phases, which averages cancel; the view has more than a
            quarter of the values, or its boxes do not divide rows and frames.
    """

    def __init__(self, config: ViewConfig, spectrogram: SpectrogramConfig):
        self.config, self.spectrogram = config, spectrogram
        C, F, T = spectrogram.shape
        if spectrogram.representation in SIGNED:
            raise ValueError(
                f"representation={spectrogram.representation!r} has signs or phases, of which no small "
                "spectrogram is made; an upsampler needs bands, magnitude or mel"
            )
        if config.kind == "lower_bands":
            self.stride, self.shape = (1, 1), (C, config.kept_rows, T)
        else:
            self.stride = config.row_factor, config.frame_factor
            self.shape = (C, F // config.row_factor, T // config.frame_factor)
            if F % config.row_factor or T % config.frame_factor:
                raise ValueError(
                    f"a spectrogram of {F}x{T} has no boxes of row_factor={config.row_factor} by "
                    f"frame_factor={config.frame_factor}: they must divide it"
                )
        if LEAST_FACTOR * self.shape[1] * self.shape[2] > F * T:
            raise ValueError(
                f"a view of {self.shape[1]}x{self.shape[2]} is more than a quarter of {F}x{T}: take fewer "
                "kept_rows, or larger factors"
            )
        floor = RANGES[spectrogram.value_range][0]
        self.floor = 0.0 if spectrogram.value_range == "unit_variance" else float(floor)

    @property
    def fewest_rows(self) -> int:
        """The fewest lower rows of a full spectrogram that an upsampler is trained to go on from."""
        return self.spectrogram.n_rows // LEAST_FACTOR

    @property
    def compared_from(self) -> float:
        """Hz from which what an upsampler made is compared with what was there: all of it if "smaller"."""
        above = self.config.kind == "lower_bands"
        return float(self.spectrogram.row_frequencies[self.config.kept_rows]) if above else 0.0

    def view(self, x0: Tensor) -> Tensor:
        """Return the small spectrogram (B, C, f, t) of x0 (B, C, F, T)."""
        self._check("x0", x0, self.spectrogram.shape)
        if self.config.kind == "lower_bands":
            return x0[:, :, : self.config.kept_rows]
        return nnf.avg_pool2d(x0, self.stride)

    def fill(self, view: Tensor) -> Tensor:
        """Return the plainest x0 (B, C, F, T) with this view: boxes of one value, or zeros above the rows."""
        self._check("a view", view, self.shape)
        if self.config.kind == "lower_bands":
            return nnf.pad(view, (0, 0, 0, self.spectrogram.n_rows - self.config.kept_rows))
        return nnf.interpolate(view, scale_factor=self.stride, mode="nearest")

    def project(self, x0: Tensor, view: Tensor) -> Tensor:
        """Return x0 (B, C, F, T) moved to have this view (B, C, f, t), by the least change there is."""
        if self.config.kind == "lower_bands":
            return torch.cat([view, x0[:, :, self.config.kept_rows :]], dim=2)  # exactly, without rounding
        return x0 + self.fill(view - self.view(x0))

    def hold(self, x0: Tensor, view: Tensor) -> Tensor:
        """Return x0 (B, C, F, T) with this view that hardly leaves the range of values.

        Cut to the range and moved to the view in turns (projections onto convex sets), the view last. So what
        a sampler's own clamp then takes away from the view is little.
        """
        for _ in range(HOLD_TURNS):
            x0 = self.project(self.limit(x0), view)
        return x0

    def limit(self, x0: Tensor) -> Tensor:
        """Return x0 cut to the range of values."""
        return x0.clamp(*RANGES[self.spectrogram.value_range])

    def spread(self, view: Tensor) -> Tensor:
        """Return x0 (B, C, F, T) interpolated from its view: bilinear, or silence above the kept rows.

        What interpolation smooths away of the view is added back, so view(spread(v)) = v here too.
        """
        if self.config.kind == "lower_bands":
            empty = torch.full_like(self.fill(view), self.floor)
            return self.project(empty, view)
        self._check("a view", view, self.shape)
        smooth = nnf.interpolate(view, scale_factor=self.stride, mode="bilinear", align_corners=False)
        return self.project(smooth, view)

    def draw(self, view: Tensor) -> Tensor:
        """Return the view as it is at the full size, for pictures: its boxes, or its rows below silence."""
        return self.spread(view) if self.config.kind == "lower_bands" else self.fill(view)

    def quieter(self, x0: Tensor, decibels: Tensor) -> Tensor:
        """Return x0 (B, C, F, T) as if the clips were `decibels` (B,) below what sets the range's top.

        With `value_range="unit_variance"` it comes back as it is: its values say nothing of the level.
        """
        low, high = RANGES[self.spectrogram.value_range]
        if self.spectrogram.value_range == "unit_variance":
            return x0
        decibels = decibels.to(x0).view(-1, 1, 1, 1)
        if self.spectrogram.scale == "linear":
            return low + (x0 - low) * 10 ** (-decibels / 20)
        return (x0 - decibels * (high - low) / self.spectrogram.db_range).clamp(min=low)

    def told_of_view(self, view: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
        """Return what an upsampler is told: the view under noise, spread, and how far it can be relied on.

        Conditioning augmentation (Ho et al. 2022, "Cascaded Diffusion Models", section 4): the noise makes
        the upsampler forgive a first model's errors. The last channel, 1 - strength where something is known
        and 0 where not, tells it how much: a plane of the input, not an embedding, because it says where too.

        Args:
            view: (B, C, f, t).
            strength: (B,), s of sqrt(1 - s²)·view + s·noise; 0 leaves the view, 1 nothing of it.
            noise: like `view`, N(0, I).

        Returns:
            (B, C + 1, F, T).
        """
        noisy, trust = _under_noise(view, strength, noise)
        if self.config.kind == "lower_bands":
            return torch.cat([self.fill(noisy), self.fill(trust.expand_as(view[:, :1]))], dim=1)
        full = self.spread(noisy)
        return torch.cat([full, trust.expand_as(full[:, :1])], dim=1)

    def told_of_rows(self, x0: Tensor, rows: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
        """Return the same for the lowest rows of a full spectrogram, as many as there are.

        Args:
            x0: (B, C, F, T); what it holds above has no effect.
            rows: int64 (B,), how many of them are known.
            strength: (B,); noise: like x0.
        """
        known = (torch.arange(x0.shape[2], device=x0.device) < rows.view(-1, 1))[:, None, :, None]
        noisy, trust = _under_noise(x0, strength, noise)
        noisy, trust = torch.where(known, noisy, 0.0), torch.where(known, trust, 0.0)
        return torch.cat([noisy, trust.expand_as(x0[:, :1])], dim=1)

    @staticmethod
    def expected(told: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best linear guess at x0 and its expected error, value by value: (B, C, F, T) each.

        The guess is Wiener's: E[x | y] = y·sqrt(1-s²)·d²/((1-s²)·d² + s²) of y = sqrt(1-s²)·x + s·noise with
        x of variance d²; all of y at s = 0, nothing of it at s = 1, and nothing where nothing is known. Its
        error has the variance d²·s²/((1-s²)·d² + s²), and beside that of the detail that no view says.
        """
        noisy, s = told[:, :-1], 1 - told[:, -1:]
        signal = (1 - s.square()) * TYPICAL_STD**2
        guess = noisy * signal / ((signal + s.square()) * (1 - s.square()).sqrt().clamp(min=1e-6))
        variance = TYPICAL_STD**2 * s.square() / (signal + s.square()) + DETAIL_STD**2
        return guess, variance.sqrt().expand_as(guess)

    @staticmethod
    def _check(name: str, tensor: Tensor, shape: tuple[int, int, int]) -> None:
        if tensor.ndim != 4 or tensor.shape[1:3] != shape[:2]:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; expected (B, {shape[0]}, {shape[1]}, T)"
            )


def _under_noise(x: Tensor, strength: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return sqrt(1 - s²)·x + s·noise (B, ...) and 1 - s (B, 1, 1, 1)."""
    s = strength.to(x).view(-1, 1, 1, 1)
    return (1 - s.square()).sqrt() * x + s * noise, 1 - s
