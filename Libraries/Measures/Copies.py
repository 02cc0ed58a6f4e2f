"""Whether clips were copied from training: how near each is to its nearest training clip.

In the spectrogram at the best of all shifts in time, because training shifts clips and a copy that starts
0.3 s later is still a copy; in the tagger's embedding, which hears what is alike though no two frames are.
"""

from functools import lru_cache

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from Libraries.Sound.FilterBanks import mel_matrix

SHIFT = 64  # frames either way, half a clip at most
FRAME_SECONDS = 0.016
N_MELS = 32
MAX_HZ = 8_000.0
RANGE_DB = 80.0
_SMALLEST = 1e-12
_AT_A_TIME = 16  # clips: what is held in memory grows with it


def level_pictures(waveforms: Tensor, sample_rate: int) -> Tensor:
    """Return what copies are looked for in: the level of 32 mel bands up to 8 kHz, frames of 16 ms.

    Args:
        waveforms: (B, 1, L) float32.
        sample_rate: Hz.

    Returns:
        (B, 32, T) float32 from -1 (80 dB below the clip's loudest, and silence) to 1.
    """
    hop = round(FRAME_SECONDS * sample_rate)
    n_fft = 1 << (3 * hop).bit_length()  # three to six frames
    waves = waveforms[:, 0].detach().cpu().float()
    return torch.cat([_pictures(batch, n_fft, hop, sample_rate) for batch in waves.split(_AT_A_TIME)])


def _pictures(waves: Tensor, n_fft: int, hop: int, sample_rate: int) -> Tensor:
    """Return the pictures of waves (B, L)."""
    window = torch.hann_window(n_fft)
    spectrum = torch.stft(waves, n_fft, hop, window=window, return_complex=True, pad_mode="constant")
    power = _filters(n_fft, sample_rate) @ spectrum.abs().square()
    level = 10 * power.clamp(min=_SMALLEST).log10()
    loudest = level.amax((1, 2), keepdim=True)
    picture = (level - loudest).clamp(min=-RANGE_DB) / (RANGE_DB / 2) + 1
    return torch.where(loudest > 10 * np.log10(_SMALLEST), picture, -torch.ones(()))


def shifted_distances(pictures: Tensor, others: Tensor) -> Tensor:
    """Return the root mean square difference of each pair over what both have at their best shift.

    |a - b|² = |a|² + |b|² - 2ab for all shifts at once: the products by FFT, the squares by running sums.

    Args:
        pictures, others: (N, F, T) and (M, F, T); shifts of up to 64 frames, or T/2, are tried.

    Returns:
        (N, M) float32, 0 for a copy, in the pictures' unit.

    Raises:
        ValueError: the pictures differ in bands or frames.
    """
    if pictures.shape[1:] != others.shape[1:]:
        shapes = f"{tuple(pictures.shape)} and {tuple(others.shape)}"
        raise ValueError(f"pictures have shapes {shapes}; bands and frames must be equal")
    _, F, T = pictures.shape
    shifts = torch.arange(-min(SHIFT, T // 2), min(SHIFT, T // 2) + 1)  # a's frame s + t meets b's frame t
    ours, theirs = _energies(pictures, shifts), _energies(others, -shifts)  # (N, S), (M, S)
    spectra = torch.fft.rfft(others, 2 * T).permute(2, 1, 0).conj()  # (K, F, M)
    size = F * (T - shifts.abs())
    best = []
    for own, energy in zip(pictures.split(_AT_A_TIME), ours.split(_AT_A_TIME), strict=True):
        product = torch.fft.rfft(own, 2 * T).permute(2, 0, 1) @ spectra  # (K, n, M)
        product = torch.fft.irfft(product, 2 * T, dim=0)[shifts % (2 * T)].permute(1, 2, 0)  # (n, M, S)
        squares = energy[:, None] + theirs[None] - 2 * product
        best.append((squares / size).amin(2))
    return torch.cat(best).clamp(min=0).sqrt()


def nearest_pictures(pictures: Tensor, others: Tensor) -> np.ndarray:
    """Return the distance of each picture to the nearest of the others: (N,)."""
    return shifted_distances(pictures, others).amin(1).numpy()


def nearest_embeddings(embeddings: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the Euclidean distance of each embedding to the nearest of the others: (N,)."""
    return cdist(embeddings, others).min(axis=1)


def nearest_within(pictures: Tensor) -> np.ndarray:
    """Return the distance of each picture to the nearest of the same set but itself: (N,)."""
    distances = shifted_distances(pictures, pictures)
    distances.fill_diagonal_(float("inf"))
    return distances.amin(1).numpy()


def smallest(distances: np.ndarray, count: int = 5) -> list[float]:
    """Return the smallest distances, the smallest first: a few copies do not show in a median."""
    return np.sort(distances)[:count].tolist()


def nearer_than_most(distances: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Return which distances are below all but one in a hundred of those of real clips: bool (N,)."""
    return distances < np.quantile(real, 0.01)


def _energies(pictures: Tensor, shifts: Tensor) -> Tensor:
    """Return the sum of squares of the frames that a shift leaves: (N, S); a positive one drops the first."""
    T = pictures.shape[2]
    running = torch.nn.functional.pad(pictures.double().square().sum(1).cumsum(1), (1, 0))  # (N, T + 1)
    first, last = shifts.clamp(min=0), T + shifts.clamp(max=0)
    return (running[:, last] - running[:, first]).float()


@lru_cache
def _filters(n_fft: int, sample_rate: int) -> Tensor:
    return mel_matrix(N_MELS, n_fft, sample_rate, min(MAX_HZ, sample_rate / 2)).float()
