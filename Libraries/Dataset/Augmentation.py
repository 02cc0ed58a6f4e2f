"""What varies each time a clip is read: start, level, polarity, sides, another clip; by one seed per clip."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from Libraries.Dataset.Manifest import DatasetConfig
from Libraries.Sound.Spectrogram import FLOOR_TOLERANCE, Gain
from Libraries.Sound.SpectrogramConfig import RANGES, SIGNED, SpectrogramConfig
from Libraries.Utils import get_logger

log = get_logger("Augmentation")

MIX_DB = (-20.0, 10.0)  # level of an added clip's peak, relative to the first's


class Draw(NamedTuple):
    """One batch's random numbers; all are drawn whether they are used or not."""

    shift: np.ndarray  # frames, int64 (B,)
    level: Tensor  # dB, float32 (B,)
    flip: Tensor  # bool (B,)
    mixed: np.ndarray  # whether another clip is added, bool (B,)
    partner: np.ndarray  # that clip's place in the split, a fraction of its length, float64 (B,)
    partner_level: Tensor  # dB, float32 (B,)
    swap: Tensor  # bool (B,)


class Augmentation:
    """Vary clips as a `DatasetConfig` says, as far as the representation allows.

    - `time_shift` joins a clip to the next and begins at any frame of the clip. The frames at a clip's ends
      contain mirrored audio, so the seam needs some overlap: about 4 frames, `overlap=0.01`.
    - `random_gain_db` needs normalisation='dataset'; 'per_sample' would undo it.
    - `random_polarity` needs a representation that carries the sign (complex, mdct).
    - `random_swap` of left and right needs that too, and two channels: it changes the sign of side. To
      magnitudes both are the same, so there is nothing to swap.
    - `mix` needs magnitudes in dB with normalisation='per_sample', whose powers can be added.

    Args:
        stride: frames from the start of one clip to that of the next.
    """

    def __init__(self, config: DatasetConfig, spectrogram: SpectrogramConfig, stride: int):
        self.spectrogram, self.stride = spectrogram, stride
        self.seam = seam_frame(spectrogram, stride) if config.time_shift else None
        self.level_db = config.random_gain_db if spectrogram.normalisation == "dataset" else 0.0
        self.flips = config.random_polarity and spectrogram.representation in SIGNED
        self.swaps = config.random_swap and spectrogram.representation in SIGNED and spectrogram.channels == 2
        self.mix = config.mix if adds_powers(spectrogram) else 0.0
        if config.time_shift and self.seam is None:
            log.warning(
                "time_shift is off: clips %d frames apart cannot be joined; build with overlap=0.01", stride
            )
        if config.random_gain_db and not self.level_db:
            log.warning(
                "random_gain_db=%g is off: normalisation='per_sample' undoes it", config.random_gain_db
            )
        if config.mix and not self.mix:
            log.warning("mix=%g is off: it needs magnitudes in dB, normalised per sample", config.mix)

    def draw(self, seeds: list[int]) -> Draw:
        """Return the random numbers of these seeds, one seed per clip."""
        uniform = np.stack([np.random.default_rng(seed).random(7) for seed in seeds])
        level = torch.from_numpy((2 * uniform[:, 1] - 1) * self.level_db).float()
        low, high = MIX_DB
        return Draw(
            (uniform[:, 0] * self.stride).astype(np.int64), level, torch.from_numpy(uniform[:, 2] < 0.5),
            uniform[:, 3] < self.mix, uniform[:, 4],
            torch.from_numpy(low + (high - low) * uniform[:, 5]).float(),
            torch.from_numpy(uniform[:, 6] < 0.5),
        )  # fmt: skip

    def join(self, first: Tensor, second: Tensor, shifts: np.ndarray) -> Tensor:
        """Return frames `shifts` to `shifts + T` of `first` continued by `second`.

        Args:
            first, second: (B, C, F, T) at the same gain; `second` begins `stride` frames later.
            shifts: int (B,), 0 to `stride`.
        """
        T = first.shape[-1]
        both = torch.cat([first[..., : self.seam], second[..., self.seam - self.stride :]], dim=-1)
        return torch.stack([clip[..., shift : shift + T] for clip, shift in zip(both, shifts, strict=True)])

    def louder(self, gain: Gain, other: Gain) -> Gain:
        """Return per clip the gain whose range reaches higher, so that neither clip is cut at the top."""
        higher = other.offset + other.scale > gain.offset + gain.scale
        return Gain(*(torch.where(higher, theirs, ours) for ours, theirs in zip(gain, other, strict=True)))

    def regain(self, x0: Tensor, gain: Gain, target: Gain) -> Tensor:
        """Return `x0` (B, C, F, T) converted from one gain to another, (B,) each."""
        ratio, shift = gain.scale / target.scale, (gain.offset - target.offset) / target.scale
        return self._in_range(x0 * _per_clip(ratio) + _per_clip(shift))

    def add(self, x0: Tensor, other: Tensor, level: Tensor) -> Tensor:
        """Return two clips as if they sounded together, normalised anew; all (B, C, F, T).

        The powers of both add up, as they do on average for sounds of independent phase. What lies at the
        floor counts as zero.

        Args:
            level: of the peak of `other` relative to that of `x0`, in dB, (B,).
        """
        low, high = RANGES[self.spectrogram.value_range]
        db_range = self.spectrogram.db_range

        def power(x: Tensor, level: Tensor | float) -> Tensor:
            db = (x - high) * db_range / (high - low)
            db = db - db.amax((1, 2, 3), keepdim=True) + level
            return torch.where(x <= low + (high - low) * FLOOR_TOLERANCE / db_range, 0, 10 ** (db / 10))

        total = power(x0, 0.0) + power(other, _per_clip(level.to(x0.device)))
        relative = total / total.amax((1, 2, 3), keepdim=True).clamp(min=1e-30)
        db = 10 * torch.log10(relative.clamp(min=1e-30))
        return self._in_range(high + db * (high - low) / db_range)

    def vary(self, x0: Tensor, gain: Gain, draw: Draw) -> Tensor:
        """Return `x0` (B, C, F, T) with the drawn level, polarity and sides."""
        if not (self.flips or self.swaps or self.level_db):
            return x0
        offset, scale = map(_per_clip, gain)
        features = x0 * scale + offset
        if self.flips:
            features = torch.where(_per_clip(draw.flip.to(x0.device)), -features, features)
        if self.swaps:
            mid, side = features.chunk(2, dim=1)
            swapped = torch.cat([mid, -side], dim=1)
            features = torch.where(_per_clip(draw.swap.to(x0.device)), swapped, features)
        if self.level_db:
            top = RANGES[self.spectrogram.value_range][1] * scale + offset
            features = self._change_level(features, _per_clip(draw.level.to(x0.device)), top)
        return self._in_range((features - offset) / scale)

    def _change_level(self, features: Tensor, level: Tensor, top: Tensor) -> Tensor:
        """Add `level` dB, or less where a clip would exceed its range's top; the floor stays in place."""
        config = self.spectrogram
        peak = features.abs() if config.representation in SIGNED else features
        peak = peak.amax((1, 2, 3), keepdim=True)
        if config.scale == "db" and config.representation not in SIGNED:
            level = torch.minimum(level, (top - peak).clamp(min=0))
            at_floor = features <= -config.db_range + FLOOR_TOLERANCE
            return torch.where(at_floor, features, (features + level).clamp(min=-config.db_range))
        power = config.compression if config.representation in SIGNED else 1.0
        factor = 10 ** (level * power / 20)
        return features * torch.minimum(factor, (top / peak.clamp(min=1e-12)).clamp(min=1))

    def _in_range(self, x0: Tensor) -> Tensor:
        return x0.clamp(*RANGES[self.spectrogram.value_range])


def adds_powers(spectrogram: SpectrogramConfig) -> bool:
    """Return whether values are levels in dB below their own clip's peak, whose powers can be added."""
    return (
        spectrogram.scale == "db"
        and spectrogram.normalisation == "per_sample"
        and spectrogram.value_range in ("minus_one_to_one", "zero_to_one")
        and spectrogram.representation not in SIGNED
    )


def seam_frame(config: SpectrogramConfig, stride: int) -> int | None:
    """Return a frame from which the next clip, `stride` frames later, can take over, or None.

    Frames whose window reaches beyond the clip contain mirrored audio: 14 dB off (measured at 1024/288), a
    visible line in the spectrogram. The seam lies where both clips contain the music itself.
    """
    reach = config.hop_length if config.representation == "mdct" else config.win_length // 2
    first_clean = -(-reach // config.hop_length)
    end_clean = min(config.n_frames, (config.clip_samples - reach) // config.hop_length + 1)
    seam = stride + first_clean
    return seam if seam <= end_clean else None


def _per_clip(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)"""
    return values.reshape(-1, 1, 1, 1)
