"""STFT, its inverse, and methods to find the phase that a magnitude spectrogram lacks."""

import heapq
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from torch import Tensor

# gamma / win_length^2 of the Gaussian closest to a Hann window (Prusa et al. 2017, table I)
HANN_GAMMA = 0.25645
PGHI_TOLERANCE = 1e-5  # bins below this fraction of the loudest get a random phase
FAST_MOMENTUM = 0.99  # Perraudin et al. 2013; helps from a random start, spoils a good one


def stft(waveform: Tensor, window: Tensor, n_fft: int, hop_length: int) -> Tensor:
    """Return the centred, reflect-padded STFT as librosa defines it.

    Args:
        waveform: (B, L) float32.
        window: (win_length,) float32; centred in `n_fft` where shorter.

    Returns:
        (B, n_fft // 2 + 1, 1 + L // hop_length) complex64.
    """
    return torch.stft(
        waveform, n_fft, hop_length, len(window), window, center=True, pad_mode="reflect", return_complex=True
    )


def istft(spectrum: Tensor, window: Tensor, hop_length: int) -> Tensor:
    """Return the least-squares inverse of `stft`: (B, F, T) complex64 -> (B, (T - 1) * hop) float32."""
    n_fft = 2 * (spectrum.shape[-2] - 1)
    return torch.istft(spectrum, n_fft, hop_length, len(window), window, center=True)


@torch.no_grad()
def griffin_lim(
    magnitude: Tensor,
    window: Tensor,
    hop_length: int,
    iterations: int,
    init_phase: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the waveform whose STFT magnitude is close to `magnitude` (Griffin and Lim 1984).

    A random start uses the fast variant with momentum 0.99 (Perraudin et al. 2013). `init_phase` uses the
    plain one, because momentum moves away from a good start. 0 iterations only invert.

    Args:
        magnitude: (B, F, T) float32, all n_fft // 2 + 1 bins.
        window: (win_length,) float32.
        init_phase: (B, F, T) float32 in radians, or None for a random start.
        generator: of the random start, on the CPU; every clip gets the same draw, so that a clip does not
            depend on its batch. None: seed 0.

    Returns:
        (B, (T - 1) * hop_length) float32.
    """
    B, F, T = magnitude.shape
    n_fft = 2 * (F - 1)
    momentum = 0.0
    if init_phase is None:
        init_phase = random_phase(F, T, generator).to(magnitude)
        momentum = FAST_MOMENTUM
    spectrum = torch.polar(magnitude, init_phase.expand(B, F, T))
    previous = torch.zeros_like(spectrum)
    for _ in range(iterations):
        rebuilt = stft(istft(spectrum, window, hop_length), window, n_fft, hop_length)
        direction = rebuilt - momentum / (1 + momentum) * previous
        spectrum = torch.polar(magnitude, direction.angle())
        previous = rebuilt
    return istft(spectrum, window, hop_length)


def random_phase(n_freqs: int, n_frames: int, generator: torch.Generator | None = None) -> Tensor:
    """Return uniform phases in [-pi, pi): (n_freqs, n_frames) float32, from seed 0 without a generator."""
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    return (2 * torch.rand(n_freqs, n_frames, generator=generator) - 1) * torch.pi


@torch.no_grad()
def pghi(
    magnitude: Tensor, win_length: int, hop_length: int, generator: torch.Generator | None = None
) -> Tensor:
    """Return the phase of a Hann-windowed STFT from its magnitude: phase gradient heap integration.

    The magnitude's logarithm gives the phase's derivatives, which are integrated from the loudest bin
    outward (Prusa, Balazs and Soendergaard 2017, section III and algorithm 1). Runs on the CPU, one clip per
    thread and as many threads as torch has. A region that touches no louder one starts with a random phase.

    Args:
        magnitude: (B, F, T) float32 on any device, all n_fft // 2 + 1 bins.
        generator: of the random phases, on the CPU; the same draw for every clip. None: seed 0.

    Returns:
        (B, F, T) float32 in radians on the magnitude's device, in the convention of `stft`.
    """
    return _per_clip(magnitude, generator, lambda clip, _: _pghi_differences(clip, win_length, hop_length))


@torch.no_grad()
def integrate_differences(
    magnitude: Tensor, d_time: Tensor, d_freq: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Return the phase that has these differences between neighbouring bins, summed from loud to quiet.

    The heap of `pghi` decides the order: every bin is reached along the loudest path. If the differences
    are those of a signal, the phase is the signal's up to a constant for each region that quiet bins
    surround. One constant per clip is known up to the sign: the spectrum of a real signal is real at 0 Hz and
    at half the sample rate. Runs on the CPU, like `pghi`.

    Args:
        magnitude: (B, F, T) float32 on any device, all n_fft // 2 + 1 bins.
        d_time: (B, F, T - 1) radians, phase[f, t + 1] - phase[f, t], up to multiples of 2·pi.
        d_freq: (B, F - 1, T) radians, phase[f + 1, t] - phase[f, t], likewise.
        generator: as in `pghi`.

    Returns:
        (B, F, T) float32 in radians on the magnitude's device, in the convention of `stft`.

    Raises:
        ValueError: the shapes do not match.
    """
    B, F, T = magnitude.shape
    if d_time.shape != (B, F, T - 1) or d_freq.shape != (B, F - 1, T):
        raise ValueError(
            f"differences of shapes {tuple(d_time.shape)} and {tuple(d_freq.shape)} do not fit a magnitude "
            f"of {tuple(magnitude.shape)}; expected {(B, F, T - 1)} along time and {(B, F - 1, T)} along "
            "frequency"
        )
    along_time, along_freq = (part.cpu().numpy().astype(np.float64) for part in (d_time, d_freq))
    phase = _per_clip(magnitude, generator, lambda _, i: (along_time[i], along_freq[i]))
    ends = torch.polar(magnitude[:, [0, -1]].square(), 2 * phase[:, [0, -1]]).sum((1, 2))
    return phase - ends.angle()[:, None, None] / 2


def heap_edges(magnitude: Tensor) -> tuple[Tensor, Tensor]:
    """Return which differences `integrate_differences` uses: one for each bin except a region's loudest.

    Args:
        magnitude: (B, F, T) float32 on any device.

    Returns:
        (B, F, T - 1) along time and (B, F - 1, T) along frequency, bool on the magnitude's device.
    """
    B, F, T = magnitude.shape
    along_time, along_freq = np.zeros((B, F, T - 1), bool), np.zeros((B, F - 1, T), bool)
    for i, clip in enumerate(magnitude.cpu().numpy().astype(np.float64)):
        order, parent = _grow(clip, PGHI_TOLERANCE * clip.max(), np.argsort(-clip, axis=None))
        first = np.minimum(order, parent)  # of the two bins, the lower or earlier
        timewise = order // T == parent // T
        along_time[i, first[timewise] // T, first[timewise] % T] = True
        along_freq[i, first[~timewise] // T, first[~timewise] % T] = True
    return tuple(torch.from_numpy(edges).to(magnitude.device) for edges in (along_time, along_freq))


def _per_clip(
    magnitude: Tensor,
    generator: torch.Generator | None,
    differences: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]],
) -> Tensor:
    """Return every clip's phase, integrated from `differences(magnitude (F, T), index of the clip)`."""
    B, F, T = magnitude.shape
    start = random_phase(F, T, generator).numpy().astype(np.float64)
    clips = magnitude.cpu().numpy().astype(np.float64)

    def one(i: int) -> np.ndarray:
        return _integrate_one(clips[i], lambda clip: differences(clip, i), start)

    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
        phases = list(pool.map(one, range(B)))
    return torch.from_numpy(np.stack(phases)).to(magnitude)


def _integrate_one(
    magnitude: np.ndarray,
    differences: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    start: np.ndarray,
) -> np.ndarray:
    """Return the phase (F, T) of one clip; float64 throughout, because sums run over hundreds of frames."""
    phase = start.copy()
    threshold = PGHI_TOLERANCE * magnitude.max()
    if threshold == 0:
        return phase
    along_time, along_freq = differences(np.maximum(magnitude, threshold))
    order, parent = _grow(magnitude, threshold, np.argsort(-magnitude, axis=None))
    _sum_up(order, parent, along_time, along_freq, phase)
    return np.angle(np.exp(1j * phase))


def _pghi_differences(
    magnitude: np.ndarray, win_length: int, hop_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the phase's differences between neighbours, (F, T - 1) and (F - 1, T), as trapezoids."""
    d_time, d_freq = _phase_gradients(magnitude, win_length, hop_length)
    return (d_time[:, :-1] + d_time[:, 1:]) / 2, (d_freq[:-1] + d_freq[1:]) / 2


def _phase_gradients(
    magnitude: np.ndarray, win_length: int, hop_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the phase's change in radians per frame and per bin, both (F, T)."""
    n_freqs = len(magnitude)
    n_fft = 2 * (n_freqs - 1)
    gamma = HANN_GAMMA * win_length**2
    log_per_bin, log_per_frame = np.gradient(np.log(magnitude))
    carrier = 2 * np.pi * hop_length / n_fft * np.arange(n_freqs)[:, None]
    d_time = carrier + hop_length * n_fft / gamma * log_per_bin
    # -pi: `stft` counts a frame's phase from its first sample, the paper's formula from its middle
    d_freq = -gamma / (hop_length * n_fft) * log_per_frame - np.pi
    return d_time, d_freq


@numba.njit(nogil=True, cache=True)
def _grow(magnitude, threshold, loudest_first):
    """Return the bins above threshold in the heap's order, except seeds, and the neighbour of each."""
    n_freqs, n_frames = magnitude.shape
    done = magnitude <= threshold
    order, parent, count = np.empty(magnitude.size, np.int64), np.empty(magnitude.size, np.int64), 0
    for seed in loudest_first:
        if done[seed // n_frames, seed % n_frames]:
            continue
        done[seed // n_frames, seed % n_frames] = True
        heap = [(0.0, seed)]
        while heap:
            _, index = heapq.heappop(heap)
            f, t = index // n_frames, index % n_frames
            for df, dt in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                g, u = f + df, t + dt
                if g < 0 or u < 0 or g >= n_freqs or u >= n_frames or done[g, u]:
                    continue
                done[g, u] = True
                order[count], parent[count] = g * n_frames + u, index
                count += 1
                heapq.heappush(heap, (-magnitude[g, u], g * n_frames + u))
    return order[:count], parent[:count]


@numba.njit(nogil=True, cache=True)
def _sum_up(order, parent, along_time, along_freq, phase):
    """Set the phase of every bin of `order` to its parent's plus the difference between them."""
    n_frames = phase.shape[1]
    for i in range(len(order)):
        f, t = parent[i] // n_frames, parent[i] % n_frames
        g, u = order[i] // n_frames, order[i] % n_frames
        if f == g:
            phase[g, u] = phase[f, t] + (u - t) * along_time[f, min(t, u)]
        else:
            phase[g, u] = phase[f, t] + (g - f) * along_freq[min(f, g), t]
