"""Fixed linear maps: FFT bins to bands and mel, time to MDCT; and an inverse from bands to bins."""

import warnings

import librosa
import numpy as np
import torch
from torch import Tensor

from Libraries.Utils import get_logger

logger = get_logger("FilterBanks")

SMALL = 1e-12  # -240 dB of full scale: keeps divisions finite


def band_centres(n_bands: int, narrow_bin: int, last_bin: int) -> np.ndarray:
    """Return the FFT bins on which the bands are centred: int64 (n_bands,), strictly increasing.

    Bands 0 to `narrow_bin` take one bin each; the others widen by a constant factor up to `last_bin`.
    Harmonics of a low note lie a few bins apart and must not be merged; above about 4 kHz the ear hears
    a band as a whole, so rows can be saved there.

    Raises:
        ValueError: there are too few or too many bands to widen from one bin to `last_bin`.
    """
    n_wide = n_bands - narrow_bin - 1
    fewest, room = narrow_bin + 2, last_bin + 1
    if narrow_bin < 1 or not fewest <= n_bands <= room:
        raise ValueError(
            f"n_bands={n_bands} is impossible with one-bin bands up to bin {narrow_bin} and the last band at "
            f"bin {last_bin}: allowed are {fewest} to {room} bands, and at least one narrow bin"
        )
    wide = np.floor(np.geomspace(narrow_bin, last_bin, n_wide + 1) + 0.5)[1:].astype(np.int64)
    centres = np.concatenate([np.arange(narrow_bin + 1), wide])
    if np.any(np.diff(centres) < 1):
        raise ValueError(
            f"n_bands={n_bands} leaves {n_wide} bands between bins {narrow_bin} and {last_bin}, so the first "
            f"of them would be narrower than a bin: take fewer bands or raise narrow_frequency"
        )
    return centres


def band_matrix(n_bands: int, n_freqs: int, narrow_bin: int, last_bin: int) -> Tensor:
    """Return triangular bands over FFT bins: float64 (n_bands, n_freqs), rows sum to 1, full row rank.

    Every triangle peaks on its own FFT bin and is zero on its neighbours' centres, so the columns at the
    centres form a diagonal matrix: no row is empty or depends on others, unlike in a mel bank of that size.

    Raises:
        ValueError: as `band_centres`.
    """
    centres = band_centres(n_bands, narrow_bin, last_bin)
    bins = np.arange(n_freqs)
    hats = [np.interp(bins, centres, peak, left=0.0, right=0.0) for peak in np.eye(n_bands)]
    matrix = np.stack(hats)
    return torch.from_numpy(matrix / matrix.sum(axis=1, keepdims=True))


def mel_matrix(n_bands: int, n_fft: int, sample_rate: int, max_frequency: float) -> Tensor:
    """Return librosa's (Slaney) mel filters from 0 to `max_frequency` Hz: float64 (n_bands, n_fft // 2 + 1).

    Below 1 kHz the filters lie closer together than FFT bins, so many are redundant: 224 rows at n_fft 1024,
    32 kHz and 14.9 kHz have rank 184. With still more filters, some fall between two bins and are empty,
    which is logged. `band_matrix` has neither fault.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Empty filters detected")  # logged below, with the numbers
        matrix = librosa.filters.mel(
            sr=sample_rate, n_fft=n_fft, n_mels=n_bands, fmax=max_frequency, dtype=np.float64
        )
    n_empty = int(np.sum(matrix.max(axis=1) == 0))
    if n_empty:
        logger.warning("%d of %d mel bands are empty at n_fft %d: take fewer", n_empty, n_bands, n_fft)
    return torch.from_numpy(matrix)


def mel_centres(n_bands: int, max_frequency: float) -> np.ndarray:
    """Return the centres of the mel bands of `mel_matrix` in Hz, float64 (n_bands,)."""
    return librosa.mel_frequencies(n_mels=n_bands + 2, fmin=0.0, fmax=max_frequency)[1:-1]


def mdct_matrix(n_coefficients: int) -> Tensor:
    """Return the sine-windowed MDCT: float64 (n_coefficients, 2 * n_coefficients).

    `frame @ matrix.T` gives the coefficients; `coefficients @ matrix`, overlap-added with a hop of
    `n_coefficients`, restores the signal exactly (Princen and Bradley 1986, time-domain alias cancellation).
    """
    n = torch.arange(2 * n_coefficients, dtype=torch.float64)
    k = torch.arange(n_coefficients, dtype=torch.float64)[:, None]
    window = torch.sin(torch.pi * (n + 0.5) / (2 * n_coefficients))
    phase = torch.pi / n_coefficients * (n + 0.5 + n_coefficients / 2) * (k + 0.5)
    return (2 / n_coefficients) ** 0.5 * window * torch.cos(phase)


def nonnegative_inverse(matrix: Tensor, target: Tensor, start: Tensor, iterations: int) -> Tensor:
    """Return x >= 0 with matrix @ x close to target, for all clips and frames at once.

    Multiplicative updates minimise the Kullback-Leibler divergence (Lee and Seung 2001, equation 5). They
    weigh an error against its level, as decibels do. Least squares sees only the loudest rows and takes 100
    projected gradient steps (FISTA) to get as close in dB as 10 updates. Where target is zero, so is x.

    Args:
        matrix: (R, N) float32, non-negative.
        target: (B, R, T) float32, non-negative.
        start: (B, N, T) float32, non-negative; the closer, the fewer iterations are needed.
        iterations: number of updates.

    Returns:
        (B, N, T) float32.
    """
    weight = matrix.sum(0)[:, None].clamp(min=SMALL)  # zero only for bins that no row covers
    x = torch.maximum(start, 0.1 * (matrix.T @ target) / weight)  # an update cannot leave zero
    for _ in range(iterations):
        x = x * (matrix.T @ (target / (matrix @ x).clamp(min=SMALL))) / weight
    return x
