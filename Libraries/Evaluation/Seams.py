"""Measure whether seams in continued music are audible, by the steps of level and spectrum there.

Music has a step at every onset, so a seam is judged by comparison: if a random seam has a larger step than
a random other place in half of all pairs, nothing tells seams apart.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from Libraries.Sound.FilterBanks import mel_matrix

N_FFT = 1024  # samples
BANDS = 32
FLOOR_DB = -60.0  # of a band, relative to the loudest value of the music
SIDE_SECONDS = 0.1  # averaged on either side of a place


@dataclass(frozen=True)
class SeamReport:
    """Median steps in dB at the seams and elsewhere, and how often a seam has the larger of two."""

    seams: int
    level_step: float  # dB
    level_step_elsewhere: float  # dB
    level_told_apart: float  # 0.5: not at all, 1: every seam
    spectrum_step: float  # dB, root mean square over bands
    spectrum_step_elsewhere: float  # dB
    spectrum_told_apart: float


def measure_seams(waveform: Tensor, seams: list[float], sample_rate: int) -> SeamReport:
    """Compare the steps at `seams` with those at all other places, 16 ms apart.

    A step is the difference between the means over 0.1 s before and 0.1 s after a place: of the level in dB,
    and of 32 mel bands in dB with the level removed.

    Args:
        waveform: (L,) or (C, L) float, music with seams; channels are heard as their mean.
        seams: positions in seconds where windows were joined.
        sample_rate: Hz.

    Raises:
        ValueError: no seam is at least 0.1 s from both ends.
    """
    hop = round(0.016 * sample_rate)
    side = round(SIDE_SECONDS * sample_rate / hop)
    mono = torch.atleast_2d(waveform.float()).mean(0)
    bands = _bands_in_db(mono, sample_rate, hop)  # (BANDS, T)
    level_steps, spectrum_steps = _steps(bands, side)
    places = torch.arange(len(level_steps)) + side
    wanted = torch.tensor(seams, dtype=torch.float64) * sample_rate / hop
    distance = (places[:, None] - wanted[None]).abs()
    inside = (wanted >= side) & (wanted <= side + len(places) - 1)
    if not inside.any():
        raise ValueError(f"none of the seams {seams} is {SIDE_SECONDS} s from both ends of the music")
    at = distance[:, inside].argmin(dim=0)
    elsewhere = distance.amin(dim=1) > side
    values = []
    for steps in (level_steps, spectrum_steps):
        there, others = steps[at], steps[elsewhere]
        values += [there.median().item(), others.median().item(), _told_apart(there, others)]
    return SeamReport(len(at), *values)


def _bands_in_db(waveform: Tensor, sample_rate: int, hop: int) -> Tensor:
    spectrum = torch.stft(waveform, N_FFT, hop, window=torch.hann_window(N_FFT), return_complex=True)
    power = mel_matrix(BANDS, N_FFT, sample_rate, sample_rate / 2).to(waveform) @ spectrum.abs().square()
    decibels = 10 * torch.log10(power.clamp(min=1e-12))
    return decibels.clamp(min=decibels.max() + FLOOR_DB)


def _steps(bands: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return the steps of level and of spectrum at every place that has `side` frames on both sides."""
    means = bands.unfold(1, side, 1).mean(dim=-1)  # (BANDS, T - side + 1)
    change = means[:, side:] - means[:, :-side]
    level = change.mean(dim=0)
    return level.abs(), (change - level).square().mean(dim=0).sqrt()


def _told_apart(there: Tensor, others: Tensor) -> float:
    """Return the fraction of pairs in which the first is larger (Mann and Whitney 1947)."""
    larger = (there[:, None] > others[None]).double() + 0.5 * (there[:, None] == others[None]).double()
    return larger.mean().item()
