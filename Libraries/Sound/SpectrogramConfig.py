"""The settings that decide what a model tensor means, and which of them are impossible."""

import math
from dataclasses import dataclass

import numpy as np

from Libraries.Sound.FilterBanks import band_centres, mel_centres
from Libraries.Utils import require

BANKED = ("bands", "mel")
SIGNED = ("complex", "mdct")  # their features lie around zero and carry the phase or sign
RANGES = {"minus_one_to_one": (-1, 1), "zero_to_one": (0, 1), "unit_variance": (-math.inf, math.inf)}
CHOICES = {
    "representation": ("magnitude", "bands", "mel", "complex", "mdct"),
    "scale": ("db", "linear"),
    "normalisation": ("per_sample", "dataset"),
    "value_range": tuple(RANGES),
    "phase": ("pghi", "griffin_lim", "learned"),
    "band_inverse": ("pinv", "nnls"),
    "channels": (1, 2),
}
POSITIVE = (
    *("sample_rate", "clip_seconds", "n_fft", "win_length", "hop_length", "n_bands", "narrow_frequency"),
    *("max_frequency", "size_multiple", "db_range", "compression"),
)


@dataclass(frozen=True)
class SpectrogramConfig:
    """Everything that decides what a model tensor means; the values live in `Conf.py`.

    Raises:
        ValueError: a setting is impossible; the sentence names it, its value and what is allowed.
    """

    representation: str  # magnitude | bands | mel | complex | mdct
    sample_rate: int  # Hz
    clip_seconds: float  # s
    n_fft: int  # samples; unused by mdct
    win_length: int  # samples, Hann; unused by mdct
    hop_length: int  # samples; for mdct the number of coefficients; its window is twice as long
    n_bands: int  # rows of `bands` and `mel`
    narrow_frequency: float  # Hz; `bands` are one FFT bin wide up to here
    max_frequency: float  # Hz; bins above are dropped (for `bands` and `mel` the last band ends here)
    size_multiple: int  # rows and frames are cut down to a multiple of it
    scale: str  # db | linear, of magnitude, bands and mel
    db_range: float  # dB kept below the loudest value (per_sample) or below full scale (dataset)
    compression: float  # power of the modulus in complex (.4) and mdct (.5)
    normalisation: str  # per_sample | dataset
    value_range: str  # minus_one_to_one | zero_to_one | unit_variance
    phase: str  # pghi | griffin_lim (from a random start) | learned, of magnitude, bands and mel
    band_inverse: str  # pinv | nnls (non-negative, closer), of bands and mel
    griffin_lim_iterations: int  # about 10 after pghi or learned, about 60 from a random start
    channels: int = 1  # of the audio; 2 are coded as mid and side (Stereo.py), with one gain

    def __post_init__(self):
        _check_settings(self)
        if self.representation != "mdct":
            _check_window(self)
        if self.representation == "bands":
            band_centres(self.n_bands, self.narrow_bin, self.last_bin)  # raises where they do not fit

    @property
    def clip_samples(self) -> int:
        """Number of samples that `encode` takes."""
        return round(self.clip_seconds * self.sample_rate)

    @property
    def kept_samples(self) -> int:
        """Number of samples that `decode` returns, from the centre of the first kept frame to the last's."""
        return (self.n_frames - 1) * self.hop_length

    def frames_in(self, seconds: float) -> int:
        """Return the number of frames in `seconds`, at least one."""
        return max(1, round(seconds * self.sample_rate / self.hop_length))

    @property
    def n_freqs(self) -> int:
        """Number of rows of the full transform, before any cut."""
        return self.hop_length if self.representation == "mdct" else self.n_fft // 2 + 1

    @property
    def last_bin(self) -> int:
        """Highest bin whose centre is not above `max_frequency`."""
        if self.representation == "mdct":  # coefficient k lies between bins, at (k + 1/2) / (2 hop)
            return int(self.max_frequency * 2 * self.hop_length / self.sample_rate - 0.5)
        return int(self.max_frequency * self.n_fft / self.sample_rate)

    @property
    def n_bins(self) -> int:
        """Number of the full transform's rows that a model tensor can fill; those above invert to zero."""
        return self.last_bin + 1 if self.representation in BANKED else self.n_rows

    @property
    def narrow_bin(self) -> int:
        """Highest FFT bin that has a band of its own, for `bands`."""
        return int(self.narrow_frequency * self.n_fft / self.sample_rate)

    @property
    def n_rows(self) -> int:
        """Number of frequency rows of a model tensor."""
        n_rows = self.n_bands if self.representation in BANKED else self.last_bin + 1
        return n_rows // self.size_multiple * self.size_multiple

    @property
    def row_frequencies(self) -> np.ndarray:
        """Centre of every frequency row in Hz, float64 (n_rows,)."""
        if self.representation == "mel":
            return mel_centres(self.n_bands, self.max_frequency)
        if self.representation == "mdct":
            return (np.arange(self.n_rows) + 0.5) * self.sample_rate / (2 * self.hop_length)
        bins = np.arange(self.n_rows)
        if self.representation == "bands":
            bins = band_centres(self.n_bands, self.narrow_bin, self.last_bin)
        return bins * self.sample_rate / self.n_fft

    @property
    def kept_frequency(self) -> float:
        """Centre of the highest row in Hz."""
        return float(self.row_frequencies[-1])

    @property
    def n_frames(self) -> int:
        """Number of frames of a model tensor."""
        n_frames = 1 + self.clip_samples // self.hop_length
        return n_frames // self.size_multiple * self.size_multiple

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, F, T) of one clip's model tensor; of stereo, mid is the first half of C and side the second."""
        parts = 2 if self.representation == "complex" else 1
        return (self.channels * parts, self.n_rows, self.n_frames)


def _check_settings(config: SpectrogramConfig) -> None:
    for name, allowed in CHOICES.items():
        require(allowed, **{name: getattr(config, name)})
    for name in POSITIVE:
        _require(getattr(config, name) > 0, config, name, "greater than 0")
    _require(config.griffin_lim_iterations >= 0, config, "griffin_lim_iterations", "at least 0")
    _require(config.compression <= 1, config, "compression", "at most 1")
    rule = f"at most half the sample rate, {config.sample_rate / 2} Hz"
    _require(config.max_frequency <= config.sample_rate / 2, config, "max_frequency", rule)
    if config.phase == "learned" and config.representation in SIGNED:
        raise ValueError(
            f"phase='learned' is for magnitudes: representation={config.representation!r} carries its own; "
            "set phase='pghi', which it leaves unused"
        )
    multiple = config.size_multiple
    if config.representation in BANKED:
        rule = f"a multiple of size_multiple={multiple}"
        _require(config.n_bands % multiple == 0, config, "n_bands", rule)
    rule = f"higher: there are fewer rows below it than size_multiple={multiple}"
    _require(config.n_rows > 0, config, "max_frequency", rule)
    shortest = config.hop_length * max(multiple - 1, 1) / config.sample_rate
    rule = f"at least {shortest:.3f} s, or there are fewer frames than size_multiple={multiple}"
    _require(config.n_frames > 1, config, "clip_seconds", rule)


def _check_window(config: SpectrogramConfig) -> None:
    _require(config.n_fft % 2 == 0, config, "n_fft", "even")
    _require(config.win_length <= config.n_fft, config, "win_length", f"at most n_fft={config.n_fft}")
    most = config.win_length * 3 // 4
    rule = f"at most {most}, three quarters of win_length, or the windows leave gaps"
    _require(config.hop_length <= most, config, "hop_length", rule)
    shortest = config.n_fft / 2 / config.sample_rate
    _require(config.clip_samples > config.n_fft // 2, config, "clip_seconds", f"longer than {shortest:.3f} s")


def _require(condition: bool, config: SpectrogramConfig, name: str, rule: str) -> None:
    if not condition:
        raise ValueError(f"{name}={getattr(config, name)} must be {rule}")
