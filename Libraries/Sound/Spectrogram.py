"""Waveform <-> model tensor: the transform, its representation, its normalisation and its inverse."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from Libraries.Sound.FilterBanks import band_matrix, mdct_matrix, mel_matrix, nonnegative_inverse
from Libraries.Sound.PhaseRetrieval import griffin_lim, istft, pghi, stft
from Libraries.Sound.SpectrogramConfig import RANGES, SIGNED, SpectrogramConfig
from Libraries.Sound.Stereo import left_right, mid_side

SMALLEST = 1e-10  # of full scale (-200 dB): keeps the logarithm finite
QUIETEST = 1e-5  # of full scale (-100 dB): a clip without a louder bin is silence and is not amplified
FLOOR_TOLERANCE = 0.05  # dB above the floor that still invert to zero; float16 storage rounds by less
NNLS_ITERATIONS = 20  # from the pseudo-inverse; twice as many change the mel error by less than .03 dB


PhaseModel = Callable[[Tensor], Tensor]


class Gain(NamedTuple):
    """What normalisation removed: feature = x0 * scale + offset; float32 (B,), or (1,) for all clips."""

    offset: Tensor
    scale: Tensor


class Spectrogram(nn.Module):
    """Turn waveforms into model tensors and back, on any device and in any batch.

    Args:
        config: the settings.
        gain: (1,) each. With normalisation='dataset' it is the dataset's (`dataset_gain`), required to encode
            and decode; with 'per_sample' it is the typical one (`typical_gain`), from which `decode` takes
            the level of a tensor without its own gain, such as a generated one.
        phase_model: for phase='learned', from magnitudes (B, n_freqs, T) to phases in radians;
            `Runs.open_spectrogram` supplies the trained one.
    """

    def __init__(
        self, config: SpectrogramConfig, gain: Gain | None = None, phase_model: PhaseModel | None = None
    ):
        super().__init__()
        self.config, self.phase_model = config, phase_model
        self.register_buffer("gain_offset", None if gain is None else gain.offset.float().reshape(1))
        self.register_buffer("gain_scale", None if gain is None else gain.scale.float().reshape(1))
        window = torch.hann_window(config.win_length, dtype=torch.float64)
        bank = _bank(config)
        inverse = None if bank is None else torch.linalg.pinv(bank)
        mdct = mdct_matrix(config.hop_length) if config.representation == "mdct" else None
        for name, constant in (("window", window), ("bank", bank), ("inverse", inverse), ("mdct", mdct)):
            self.register_buffer(name, None if constant is None else constant.float(), persistent=False)
        # magnitude of a sine of amplitude 1, so that 0 dB is full scale
        self.full_scale = (config.hop_length / 2) ** 0.5 if mdct is not None else float(window.sum() / 2)

    def encode(self, waveform: Tensor) -> Tensor:
        """Return the model tensor of `waveform`; axes, units and errors as `encode_with_gain`."""
        return self.encode_with_gain(waveform)[0]

    def encode_with_gain(self, waveform: Tensor) -> tuple[Tensor, Gain]:
        """Return the normalised model tensor and its gain; silence gives no NaN.

        Args:
            waveform: (B, config.channels, clip_samples) float32 in [-1, 1].

        Returns:
            x0 (B, *config.shape) float32, and its gain, (B,) each.

        Raises:
            ValueError: the waveform has another shape, or normalisation='dataset' has no gain.
        """
        features = self.features(waveform)
        B = len(features)
        if self.config.normalisation == "dataset":
            gain = Gain(*(value.expand(B) for value in self._own_gain()))
        else:
            flat = features.reshape(B, -1)
            gain = self._gain(flat.amin(1), flat.amax(1), flat.mean(1), flat.std(1, correction=0))
        offset, scale = (value.reshape(-1, 1, 1, 1) for value in gain)
        x0 = (features - offset) / scale
        return x0.clamp(*RANGES[self.config.value_range]), gain

    def decode(self, x0: Tensor, gain: Gain | None = None, *, any_length: bool = False) -> Tensor:
        """Return the waveform of a model tensor.

        Rows that were cut are zero, and so are values at the floor of the dB range. A value outside the
        range, which a model may generate, is clamped to it. The gain sets the level, but phase retrieval may
        overshoot [-1, 1], so limit the peak before writing integers.

        Args:
            x0: (B, *config.shape), any float type.
            gain: from `encode_with_gain`, (B,) or (1,) each; None takes the constructor's.
            any_length: x0 may have more or fewer frames than a clip, as after an edit.

        Returns:
            (B, config.channels, config.kept_samples) float32; with `any_length` (T - 1)·hop_length samples.

        Raises:
            ValueError: x0 has another shape, there is no gain, or no phase model for phase='learned'.
        """
        self._check_tensor(x0, any_length)
        features, offset, scale = self._denormalised(x0, gain)
        if self.config.representation == "mdct":
            decoded = self._decode_mdct(self._apart(features))
        elif self.config.representation == "complex":
            decoded = self._decode_complex(self._apart(features))
        else:
            decoded = self._from_magnitude(self._to_magnitude(features, offset, scale))
        return left_right(decoded.unflatten(0, (-1, self.config.channels)))

    def magnitude(self, x0: Tensor, gain: Gain | None = None) -> Tensor:
        """Return the STFT magnitudes that `decode` finds a phase for: (B, n_freqs, T) float32.

        Of stereo they are (2 B, n_freqs, T): each clip's mid, then its side.

        Args:
            x0, gain: as in `decode`, for magnitude, bands and mel; any number of frames.

        Raises:
            ValueError: x0 has another shape, there is no gain, or the representation carries its phase.
        """
        if self.config.representation in SIGNED:
            raise ValueError(f"representation={self.config.representation!r} has no magnitudes without phase")
        self._check_tensor(x0, any_length=True)
        return self._to_magnitude(*self._denormalised(x0, gain))

    def _check_tensor(self, x0: Tensor, any_length: bool) -> None:
        """Raise a ValueError if x0 does not fit the settings."""
        C, F, T = self.config.shape
        fewest = 2 if self.mdct is not None else self.config.n_fft // 2 // self.config.hop_length + 2
        if x0.ndim != 4 or x0.shape[1:3] != (C, F) or (x0.shape[3] != T and not any_length):
            raise ValueError(
                f"x0 has shape {tuple(x0.shape)}; expected (B, C, F, T) with {self.config.shape}"
            )
        if x0.shape[3] < fewest:  # the transform reflects half a window at either end
            raise ValueError(f"x0 has {x0.shape[3]} frames; decoding needs {fewest} or more")

    def _denormalised(self, x0: Tensor, gain: Gain | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return features (B, C, F, T) of x0, and the gain's offset and scale, (B, 1, 1, 1) each."""
        gain = self._own_gain() if gain is None else gain
        offset, scale = (value.to(x0.device).float().reshape(-1, 1, 1, 1) for value in gain)
        return x0.float().clamp(*RANGES[self.config.value_range]) * scale + offset, offset, scale

    def features(self, waveform: Tensor) -> Tensor:
        """Return the model tensor before normalisation: what `dataset_gain` takes.

        With scale='db', values are in dB of full scale (0 dB: a sine of amplitude 1) and cut at the floor;
        otherwise they are linear, relative to full scale. For complex and mdct they are signed and
        compressed by a power.

        Args:
            waveform: (B, config.channels, clip_samples) float32 in [-1, 1].

        Returns:
            (B, *config.shape) float32.

        Raises:
            ValueError: the waveform has another shape.
        """
        waveform = self._checked(waveform)
        _, n_rows, n_frames = self.config.shape
        if self.config.representation == "mdct":
            hop = self.config.hop_length
            frames = nnf.pad(waveform, (hop, hop)).unfold(-1, 2 * hop, hop)[:, :n_frames]
            coefficients = (frames @ self.mdct.T / self.full_scale).transpose(1, 2)
            return self._together(_to_power(coefficients[:, None, :n_rows], self.config.compression))
        spectrum = stft(waveform, self.window, self.config.n_fft, self.config.hop_length)[..., :n_frames]
        spectrum = spectrum / self.full_scale
        if self.config.representation == "complex":
            parts = torch.view_as_real(spectrum[:, :n_rows]).permute(0, 3, 1, 2)
            return self._together(_to_power(parts, self.config.compression))
        rows = spectrum.abs()[:, :n_rows] if self.bank is None else self.bank @ spectrum.abs()
        return self._to_scale(self._together(rows[:, None]))

    def _together(self, features: Tensor) -> Tensor:
        """Return features (B·channels, c, F, T), mid and side of each clip in turn, as (B, C, F, T)."""
        return features.unflatten(0, (-1, self.config.channels)).flatten(1, 2)

    def _apart(self, features: Tensor) -> Tensor:
        """Return features (B, C, F, T) as (B·channels, c, F, T); the inverse of `_together`."""
        return features.unflatten(1, (self.config.channels, -1)).flatten(0, 1)

    def dataset_gain(self, batches: Iterable[Tensor]) -> Gain:
        """Return the gain of a whole dataset, (1,) each, from batches of its `features`, one at a time.

        Raises:
            ValueError: there is no batch.
        """
        low, high, total, squares, count = float("inf"), float("-inf"), 0.0, 0.0, 0
        for features in batches:
            values = features.detach().cpu().double()
            low, high = min(low, values.min().item()), max(high, values.max().item())
            total, squares = total + values.sum().item(), squares + values.square().sum().item()
            count += values.numel()
        if count == 0:
            raise ValueError("dataset_gain needs at least one batch of features")
        mean = total / count
        std = max(squares / count - mean**2, 0.0) ** 0.5
        return self._gain(*(torch.tensor([value]) for value in (low, high, mean, std)))

    def _gain(self, low: Tensor, high: Tensor, mean: Tensor, std: Tensor) -> Gain:
        """Return the gain for features with these statistics; its scale is never zero."""
        config = self.config
        quietest = QUIETEST**config.compression if config.representation in SIGNED else QUIETEST
        if config.value_range == "unit_variance":
            return Gain(mean, std.clamp(min=1.0 if self._in_db else quietest))
        if config.representation in SIGNED:
            high = torch.maximum(high, -low).clamp(min=quietest)
            low = -high  # so that zero stays in the middle
        elif self._in_db:
            low = self._floor(high)
            high = torch.maximum(high, low + (1 if config.normalisation == "dataset" else config.db_range))
        else:
            high = high.clamp(min=quietest)
        if config.value_range == "zero_to_one":
            return Gain(low, high - low)
        return Gain((high + low) / 2, (high - low) / 2)

    def _floor(self, peak: Tensor) -> Tensor:
        """Return the level in dB that counts as zero, given the clip's peak."""
        if self.config.normalisation == "dataset":
            return torch.full_like(peak, -self.config.db_range)
        return peak.clamp(min=20 * math.log10(QUIETEST)) - self.config.db_range

    def _to_scale(self, rows: Tensor) -> Tensor:
        if not self._in_db:
            return rows
        level = 20 * torch.log10(rows.clamp(min=SMALLEST))
        return torch.maximum(level, self._floor(level.amax((1, 2, 3), keepdim=True)))

    def _to_rows(self, features: Tensor, offset: Tensor, scale: Tensor) -> Tensor:
        """Return linear rows (B, C, F, T) from features; the inverse of `_to_scale`."""
        if not self._in_db:
            return features.clamp(min=0)
        if self.config.normalisation == "dataset" or self.config.value_range == "unit_variance":
            floor = self._floor(features.amax((1, 2, 3), keepdim=True))
        else:  # a generated tensor may not reach its range's top, so the range sets the floor
            floor = offset - scale if self.config.value_range == "minus_one_to_one" else offset
        rows = 10 ** (features / 20)
        return torch.where(features <= floor + FLOOR_TOLERANCE, 0.0, rows)

    def _to_magnitude(self, features: Tensor, offset: Tensor, scale: Tensor) -> Tensor:
        """Return all magnitudes (B·channels, n_freqs, T) of features (B, C, F, T), in the unit of `stft`."""
        rows = self._to_rows(features, offset, scale)
        return self._to_bins(rows.flatten(0, 1)) * self.full_scale

    def _from_magnitude(self, magnitude: Tensor) -> Tensor:
        """Return the waveforms (B·channels, L) of magnitudes (B·channels, n_freqs, T), with a phase found.

        Each channel gets a phase of its own, but side is turned by 90 degrees against mid: if both are one
        sound, their phases come out equal, and all that was to the right would be heard on the left.
        """
        phase, config, decoded = self._find_phase(magnitude), self.config, []
        for channel in range(config.channels):
            own = slice(channel, None, config.channels)
            start = None if phase is None else phase[own] + channel * math.pi / 2
            draw = torch.Generator().manual_seed(channel)
            decoded.append(
                griffin_lim(
                    magnitude[own], self.window, config.hop_length, config.griffin_lim_iterations, start, draw
                )
            )
        return torch.stack(decoded, dim=1).flatten(0, 1)

    def _find_phase(self, magnitude: Tensor) -> Tensor | None:
        """Return the phase to invert with, (B, n_freqs, T) in radians; None leaves it to Griffin-Lim."""
        if self.config.phase == "griffin_lim":
            return None
        if self.config.phase == "pghi":
            return pghi(magnitude, self.config.win_length, self.config.hop_length)
        if self.phase_model is None:
            raise ValueError(
                "phase='learned' needs a trained phase model: train one (Train Phase) and open the "
                "spectrogram with it (Runs.open_spectrogram), or set phase='pghi'"
            )
        return self.phase_model(magnitude)

    def _to_bins(self, rows: Tensor) -> Tensor:
        """Return all n_freqs magnitudes (B, n_freqs, T) of linear rows (B, F, T)."""
        if self.bank is None:
            return nnf.pad(rows, (0, 0, 0, self.config.n_freqs - rows.shape[1]))
        magnitude = (self.inverse @ rows).clamp(min=0)
        if self.config.band_inverse == "nnls":
            magnitude = nonnegative_inverse(self.bank, rows, magnitude, NNLS_ITERATIONS)
        return magnitude

    def _decode_complex(self, features: Tensor) -> Tensor:
        parts = _to_power(features, 1 / self.config.compression) * self.full_scale
        parts = nnf.pad(parts, (0, 0, 0, self.config.n_freqs - parts.shape[2]))
        spectrum = torch.complex(parts[:, 0], parts[:, 1])
        return istft(spectrum, self.window, self.config.hop_length)

    def _decode_mdct(self, features: Tensor) -> Tensor:
        coefficients = _to_power(features[:, 0:1], 1 / self.config.compression)[:, 0] * self.full_scale
        n_rows, hop = coefficients.shape[1], self.config.hop_length
        frames = coefficients.transpose(1, 2) @ self.mdct[:n_rows]  # (B, T, 2 hop)
        blocks = frames[:, :-1, hop:] + frames[:, 1:, :hop]
        return blocks.flatten(1)

    @property
    def _in_db(self) -> bool:
        return self.config.scale == "db" and self.config.representation not in SIGNED

    def _own_gain(self) -> Gain:
        if self.gain_offset is None:
            raise ValueError(
                f"normalisation={self.config.normalisation!r} needs a gain here: give one to Spectrogram "
                f"(see dataset_gain and typical_gain), or pass the tensor's own to decode"
            )
        return Gain(self.gain_offset, self.gain_scale)

    def _checked(self, waveform: Tensor) -> Tensor:
        """Return mid and side of each clip in turn, float32 (B·channels, L); of mono the waveform itself.

        Raises:
            ValueError: the waveform has another shape.
        """
        channels, expected = self.config.channels, self.config.clip_samples
        if waveform.ndim != 3 or waveform.shape[1:] != (channels, expected):
            raise ValueError(
                f"waveform has shape {tuple(waveform.shape)}; expected (B, {channels}, {expected}): "
                f"{('one channel', 'left and right')[channels - 1]} of {self.config.clip_seconds:g} s at "
                f"{self.config.sample_rate} Hz"
            )
        return mid_side(waveform.float()).flatten(0, 1)


def typical_gain(gain: Gain) -> Gain:
    """Return the median over clips, (1,) each, of the gains of a training split."""
    return Gain(gain.offset.median().reshape(1), gain.scale.median().reshape(1))


def _to_power(parts: Tensor, power: float) -> Tensor:
    """Raise the modulus over the channels of (B, C, F, T) to `power`; the phase or sign is kept."""
    modulus = torch.linalg.vector_norm(parts, dim=1, keepdim=True).clamp(min=SMALLEST)
    return parts * modulus ** (power - 1)


def _bank(config: SpectrogramConfig) -> Tensor | None:
    if config.representation == "bands":
        return band_matrix(config.n_bands, config.n_freqs, config.narrow_bin, config.last_bin)
    if config.representation == "mel":
        return mel_matrix(config.n_bands, config.n_fft, config.sample_rate, config.max_frequency)
    return None
