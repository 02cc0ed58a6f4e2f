"""How good a reconstruction is, and how close one set of music is to another.

The first three metrics compare a waveform with its own reconstruction; the Frechet distance compares two
sets, so it also judges generated clips against the test split. Waveforms are (B, 1, L) float32 in [-1, 1] on
any device. Of two channels their mean is heard; width and correlation (Stereo.py) judge the rest.
"""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from scipy.stats import t as student_t
from torch import Tensor

from Libraries.Sound.FilterBanks import mel_matrix
from Libraries.Sound.PhaseRetrieval import stft
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Sound.Stereo import channel_correlation, downmix, width_error

WINDOWS = (512, 1024, 2048)  # samples; one window alone misses errors between its bins
MEL_N_FFT, MEL_HOP = 2048, 512  # samples
ERROR_MELS, STATISTICS_MELS = 80, 32
RANGE_DB = 80.0  # further than this below a clip's loudest bin is silence to the ear
SMALLEST = 1e-12  # of power (-120 dB): keeps the logarithm finite
COMPARED_HZ = 12_000.0  # every representation keeps this much; `band_khz` says what it cuts


def spectral_convergence(reference: Tensor, estimate: Tensor) -> Tensor:
    """Return |  |R| - |E|  | / | R | (Frobenius norms of STFT magnitudes), averaged over three windows.

    0 is exact in magnitude; 1 is as wrong as silence. Level and fine structure count, phase does not.

    Args:
        reference, estimate: (B, 1, L) float32.

    Returns:
        (B,) float32. A silent reference with a silent estimate gives 0.

    Raises:
        ValueError: the shapes differ or are not (B, 1, L).
    """
    reference, estimate = _checked_pair(reference, estimate)
    errors = []
    for n_fft in WINDOWS:
        true, found = _magnitude(reference, n_fft, n_fft // 4), _magnitude(estimate, n_fft, n_fft // 4)
        error = (true - found).flatten(1).norm(dim=1)
        errors.append(error / true.flatten(1).norm(dim=1).clamp(min=1e-8))
    return torch.stack(errors).mean(0)


def log_spectral_distance(
    reference: Tensor, estimate: Tensor, sample_rate: int, max_frequency: float, min_frequency: float = 0.0
) -> Tensor:
    """Return the root mean square over bins of the level error in dB, averaged over frames and windows.

    Args:
        reference, estimate: (B, 1, L) float32.
        max_frequency, min_frequency: Hz; only bins between them are compared.

    Returns:
        (B,) float32 in dB. Levels more than 80 dB below the reference's loudest bin up to
        `max_frequency` count as equal.

    Raises:
        ValueError: the shapes differ or are not (B, 1, L).
    """
    reference, estimate = _checked_pair(reference, estimate)
    distances = []
    for n_fft in WINDOWS:
        first = math.ceil(min_frequency * n_fft / sample_rate)
        n_bins = int(max_frequency * n_fft / sample_rate) + 1
        spectra = (_magnitude(wave, n_fft, n_fft // 4)[:, :n_bins] ** 2 for wave in (reference, estimate))
        true, found = (levels[:, first:] for levels in _levels(*spectra))
        distances.append((true - found).square().mean(1).sqrt().mean(1))
    return torch.stack(distances).mean(0)


def mel_error(reference: Tensor, estimate: Tensor, sample_rate: int, max_frequency: float) -> Tensor:
    """Return the mean absolute level error in dB over 80 mel bands from 0 to `max_frequency` Hz.

    With wider bands than `log_spectral_distance`, it tells a wrong timbre from wrong fine structure.

    Returns:
        (B,) float32 in dB. Levels more than 80 dB below the reference's loudest band count as equal.

    Raises:
        ValueError: the shapes differ or are not (B, 1, L).
    """
    reference, estimate = _checked_pair(reference, estimate)
    true, found = _levels(
        *(_mel_power(wave, sample_rate, ERROR_MELS, max_frequency) for wave in (reference, estimate))
    )
    return (true - found).abs().mean((1, 2))


def log_mel_statistics(waveforms: Tensor, sample_rate: int, max_frequency: float = COMPARED_HZ) -> Tensor:
    """Return what `frechet_distance` compares: level and change of 32 mel bands, one row per frame.

    Rows are per frame, pooled over all clips, not per clip: with about a hundred clips the covariance of
    statistics per clip is singular, and the distance then measures the number of clips. The change,
    |level now - level one frame ago|, reveals wrong timing: on levels alone, any order of the same frames
    would be the same music. There are 32 bands because finer ones add more to the distance between two
    halves of one dataset than to that between good and bad. Levels are relative to the clip's own loudest,
    so that loudness, which normalisation removes from what a model sees, does not count.

    Args:
        waveforms: (B, 1, L) float32.
        max_frequency: Hz, the upper edge of the highest band; half the sample rate at most.

    Returns:
        (B * (n_frames - 1), 64) float32 in bel (10 dB), cut 8 bel below the clip's loudest; 16 ms per frame
        at 32 kHz.

    Raises:
        ValueError: the waveforms are not (B, 1, L).
    """
    waveforms = _checked(waveforms)
    power = _mel_power(waveforms, sample_rate, STATISTICS_MELS, min(max_frequency, sample_rate / 2))
    level = _levels(power, power)[0] / 10
    level = level - level.amax((1, 2), keepdim=True)
    change = level.diff(dim=-1).abs()
    rows = torch.cat([level[..., 1:], change], dim=1)  # (B, 2 * mels, T - 1)
    return rows.transpose(1, 2).flatten(0, 1)


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Return the Frechet distance between Gaussians fitted to two sets of feature rows.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))    (Dowson and Landau 1982; Heusel et al. 2017, eq. 6)

    The last trace is the sum of the singular values of C_a^(1/2) C_b^(1/2), with symmetric roots from `eigh`:
    the distance is symmetric in its arguments and sound where covariances are singular, unlike with a general
    matrix root. Between finite samples of one source it is above 0 and falls with their number: compare only
    distances between sets of equal size.

    Args:
        features_a: (N, D), any float type, N >= 2.
        features_b: (M, D), any float type, M >= 2.

    Returns:
        A number >= 0 in the features' unit squared; computed in float64.

    Raises:
        ValueError: the sets differ in D or have fewer than two rows.
    """
    if features_a.ndim != 2 or features_b.ndim != 2 or features_a.shape[1] != features_b.shape[1]:
        shapes = f"{tuple(features_a.shape)} and {tuple(features_b.shape)}"
        raise ValueError(f"features have shapes {shapes}; expected (N, D) and (M, D)")
    if min(len(features_a), len(features_b)) < 2:
        raise ValueError("a Frechet distance needs at least two rows in each set")
    mean_a, cov_a = _mean_and_covariance(features_a)
    mean_b, cov_b = _mean_and_covariance(features_b)
    root = torch.linalg.svdvals(_symmetric_root(cov_a) @ _symmetric_root(cov_b)).sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * root
    return max(distance.item(), 0.0)


def log_mel_distance(waveforms: Tensor, others: Tensor, sample_rate: int) -> float:
    """Return the Frechet distance of the `log_mel_statistics` of two sets of waveforms (N, 1, L).

    It falls with the number of clips, so both sets are cut to the smaller one's.
    """
    count = min(len(waveforms), len(others))
    features = (log_mel_statistics(clips[:count], sample_rate) for clips in (waveforms, others))
    return frechet_distance(*features)


def power_fraction_above(waveforms: Tensor, sample_rate: int, frequency: float) -> float:
    """Return the fraction of the power above a frequency, averaged over clips, in dB.

    Every clip counts alike, whatever its level.

    Args:
        waveforms: (B, 1, L) float32.
        frequency: Hz.
    """
    waveforms = _checked(waveforms)
    power = torch.fft.rfft(waveforms[:, 0]).abs().square()
    above = torch.fft.rfftfreq(waveforms.shape[-1], 1 / sample_rate) > frequency
    fraction = power[:, above].sum(1) / power.sum(1).clamp(min=SMALLEST)
    return 10 * math.log10(max(fraction.mean().item(), SMALLEST))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the mean and the half-width of its interval by Student's t, infinite for a single value."""
    if len(values) < 2:
        return statistics.fmean(values), math.inf
    quantile = float(student_t.ppf((1 + confidence) / 2, len(values) - 1))
    return statistics.fmean(values), quantile * statistics.stdev(values) / math.sqrt(len(values))


@dataclass(frozen=True)
class RoundTrip:
    """What is lost from waveform to model tensor and back, without a model; means over clips."""

    tensor: tuple[int, int, int]  # (C, F, T)
    band_khz: float  # centre of the highest row
    spectral_convergence: float
    log_spectral_distance: float  # dB
    mel_error: float  # dB
    frechet_distance: float  # bel^2, on log-mel statistics
    seconds_per_clip: float  # of decoding
    width_error: float | None = None  # dB, mean over octaves (`Stereo.width_error`); None: mono
    correlation: tuple[float, float] | None = None  # of the channels, before and after


def round_trip(
    spectrogram: Spectrogram, waveforms: Tensor, noise: float = 0.0, seed: int = 0, batch_size: int = 8
) -> RoundTrip:
    """Encode, add noise, decode and compare.

    Args:
        spectrogram: on the device to run on.
        waveforms: (B, channels, clip_samples) float32 on any device.
        noise: standard deviation of a Gaussian error added to the normalised tensor, like a model's.
        seed: of that error; clip i draws from seed + i.
        batch_size: clips at a time.

    Raises:
        ValueError: the waveforms do not fit the spectrogram's settings.
    """
    config = spectrogram.config
    compared = config.sample_rate, min(COMPARED_HZ, config.kept_frequency)
    device = spectrogram.window.device
    _decode_noisy(spectrogram, waveforms[:1].to(device), noise, [seed])  # compile before timing
    errors, statistics, stereo, seconds = [], [], [], 0.0
    for first in range(0, len(waveforms), batch_size):
        batch = waveforms[first : first + batch_size]
        seeds = [seed + first + i for i in range(len(batch))]
        estimate, elapsed = _decode_noisy(spectrogram, batch.to(device), noise, seeds)
        reference = batch[..., : config.kept_samples].cpu()
        errors.append(_errors(reference, estimate, *compared))
        statistics.append([log_mel_statistics(waves, *compared) for waves in (reference, estimate)])
        stereo += [_stereo_errors(reference, estimate, *compared)] if config.channels == 2 else []
        seconds += elapsed
    width, *correlation = torch.cat(stereo, dim=1).mean(1).tolist() if stereo else (None,)
    convergence, distance, mel = torch.cat(errors, dim=1).mean(1).tolist()
    return RoundTrip(
        tensor=config.shape,
        band_khz=config.kept_frequency / 1000,
        spectral_convergence=convergence,
        log_spectral_distance=distance,
        mel_error=mel,
        frechet_distance=frechet_distance(*(torch.cat(rows) for rows in zip(*statistics, strict=True))),
        seconds_per_clip=seconds / len(waveforms),
        width_error=width,
        correlation=tuple(correlation) or None,
    )


def round_trip_table(rows: dict[str, RoundTrip]) -> str:
    """Return named round trips as a Markdown table; if there are stereo ones, with two more columns."""
    stereo = any(row.correlation for row in rows.values())
    lines = [
        "| representation | tensor | band kHz | SC | LSD | mel | FD | s/clip |"
        + " width error dB | correlation before, after |" * stereo,
        "|---|---|---|---|---|---|---|---|" + "---|---|" * stereo,
    ]
    for name, row in rows.items():
        shape = "x".join(map(str, row.tensor))
        line = (
            f"| {name} | {shape} | {row.band_khz:.1f} | {row.spectral_convergence:.3f} "
            f"| {row.log_spectral_distance:.2f} | {row.mel_error:.2f} | {row.frechet_distance:.3f} "
            f"| {row.seconds_per_clip:.3f} |"
        )
        lines.append(line + (_stereo_cells(row) if stereo else ""))
    return "\n".join(lines)


def _stereo_cells(row: RoundTrip) -> str:
    if row.correlation is None:
        return " – | – |"
    return f" {row.width_error:.2f} | {row.correlation[0]:.2f}, {row.correlation[1]:.2f} |"


def _decode_noisy(
    spectrogram: Spectrogram, waveforms: Tensor, noise: float, seeds: list[int]
) -> tuple[Tensor, float]:
    """Return the decoded waveforms on the CPU and the seconds that decoding took."""
    x0, gain = spectrogram.encode_with_gain(waveforms)
    errors = [torch.randn(x0.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    x0 = x0 + noise * torch.stack(errors).to(x0)
    start = time.perf_counter()
    estimate = spectrogram.decode(x0, gain).cpu()
    return estimate, time.perf_counter() - start


def _errors(reference: Tensor, estimate: Tensor, sample_rate: int, max_frequency: float) -> Tensor:
    """Return spectral convergence, log-spectral distance and mel error of every clip: (3, B)."""
    return torch.stack(
        [
            spectral_convergence(reference, estimate),
            log_spectral_distance(reference, estimate, sample_rate, max_frequency),
            mel_error(reference, estimate, sample_rate, max_frequency),
        ]
    )


def _stereo_errors(reference: Tensor, estimate: Tensor, sample_rate: int, max_frequency: float) -> Tensor:
    """Return the width's error and the channels' correlation before and after, of every clip: (3, B)."""
    width = width_error(reference, estimate, sample_rate, max_frequency)
    return torch.stack([width, channel_correlation(reference), channel_correlation(estimate)])


def _magnitude(waveform: Tensor, n_fft: int, hop_length: int) -> Tensor:
    return stft(waveform[:, 0], torch.hann_window(n_fft, device=waveform.device), n_fft, hop_length).abs()


def _mel_power(waveform: Tensor, sample_rate: int, n_mels: int, max_frequency: float) -> Tensor:
    """Return the power in mel bands: (B, n_mels, T)."""
    filters = _mel_filters(sample_rate, n_mels, max_frequency).to(waveform.device)
    return filters @ _magnitude(waveform, MEL_N_FFT, MEL_HOP) ** 2


@lru_cache
def _mel_filters(sample_rate: int, n_mels: int, max_frequency: float) -> Tensor:
    return mel_matrix(n_mels, MEL_N_FFT, sample_rate, max_frequency).float()


def _levels(reference: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
    """Return both powers (B, F, T) in dB, cut 80 dB below the reference's loudest."""
    floor = (reference.amax((1, 2), keepdim=True) * 10 ** (-RANGE_DB / 10)).clamp(min=1e-20)
    return 10 * torch.maximum(reference, floor).log10(), 10 * torch.maximum(estimate, floor).log10()


def _mean_and_covariance(features: Tensor) -> tuple[Tensor, Tensor]:
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def _symmetric_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T  # rounding makes a zero eigenvalue negative


def _checked_pair(reference: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as (B, 1, L); raise a ValueError if a shape is wrong."""
    if reference.shape != estimate.shape:
        shapes = f"{tuple(reference.shape)} and {tuple(estimate.shape)}"
        raise ValueError(f"reference and estimate have shapes {shapes}; they must be equal")
    return _checked(reference), _checked(estimate)


def _checked(waveform: Tensor) -> Tensor:
    """Return the waveform as (B, 1, L), of two channels their mean; raise a ValueError for other shapes."""
    shortest = max(*WINDOWS, MEL_N_FFT) // 2 + 1
    if waveform.ndim != 3 or waveform.shape[1] not in (1, 2) or waveform.shape[2] < shortest:
        raise ValueError(
            f"waveform has shape {tuple(waveform.shape)}; expected (B, 1, L) with at least {shortest} samples"
        )
    return downmix(waveform)
