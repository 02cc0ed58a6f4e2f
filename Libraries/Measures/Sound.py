"""The sound of clips, whatever is played: balance of highs and lows, level, and faults of the signal."""

import numpy as np
import torch
from torch import Tensor

from Libraries.Measures.Distances import Values, values_per_clip
from Libraries.Sound.Stereo import channel_correlation, downmix, stereo_width

N_FFT = 2048
LOWEST_HZ, HIGHEST_HZ = 100.0, 8_000.0  # of the tilt
HIGHS_HZ = 5_000.0
RANGE_DB = 80.0  # below the loudest band nothing is heard
FRAME_SECONDS = 0.02
SILENT_DB = -60.0  # of full scale, RMS of a frame
CLIPPED = 0.999  # of full scale
_SMALLEST = 1e-12  # of power
_AT_A_TIME = 32  # clips: what is held in memory grows with it


def sound_measures(waveforms: Tensor, sample_rate: int) -> dict[str, Values]:
    """Return each measure of waveforms (B, C, L) float32 in [-1, 1] by its name, one value a clip.

    Two channels are heard as their mean, and their width and correlation are measured, too. Silent clips have
    neither tilt nor highs. At sample rates of 10 kHz and less there are no highs.
    """
    stereo, waveforms = stereo_measures(waveforms), downmix(waveforms)
    waves = waveforms[:, 0].detach().cpu().double()
    found = {
        "spectral tilt": spectral_tilt(waveforms, sample_rate),
        "level above 5 kHz": level_of_highs(waveforms, sample_rate),
        "loudness": 10 * waves.square().mean(1).clamp(min=_SMALLEST).log10(),
        "clipping": 100 * (waves.abs() >= CLIPPED).double().mean(1),
        "silence": 100 * silent_fraction(waveforms, sample_rate),
        "DC": 100 * waves.mean(1).abs(),
    }
    if sample_rate <= 2 * HIGHS_HZ:
        del found["level above 5 kHz"]
    return {name: values_per_clip(values.numpy()) for name, values in (found | stereo).items()}


def stereo_measures(waveforms: Tensor) -> dict[str, Tensor]:
    """Return width and correlation of the channels of waveforms (B, 2, L), (B,) each; of mono nothing."""
    if waveforms.shape[1] == 1:
        return {}
    waves = waveforms.detach().cpu()
    return {"stereo width": stereo_width(waves), "channel correlation": channel_correlation(waves)}


def mean_spectrum(waveforms: Tensor) -> Tensor:
    """Return the power of each FFT bin, averaged over the frames of each clip: (B, 1, L) -> (B, 1025)."""
    window, powers = torch.hann_window(N_FFT), []
    for waves in waveforms[:, 0].detach().cpu().float().split(_AT_A_TIME):
        spectrum = torch.stft(
            waves, N_FFT, N_FFT // 4, window=window, return_complex=True, pad_mode="constant"
        )
        powers.append(spectrum.abs().square().mean(2).double())
    return torch.cat(powers)


def spectral_tilt(waveforms: Tensor, sample_rate: int) -> Tensor:
    """Return the slope of the level of third-octave bands from 100 Hz to 8 kHz: (B,) in dB an octave.

    Bands more than 80 dB below a clip's loudest count as 80 dB below. NaN for silence.
    """
    power = mean_spectrum(waveforms)
    highest = min(HIGHEST_HZ, sample_rate / 2 / 2 ** (1 / 6))
    octaves = torch.arange(0, np.log2(highest / LOWEST_HZ), 1 / 3, dtype=torch.float64)
    frequencies = torch.arange(N_FFT // 2 + 1) * sample_rate / N_FFT
    place = torch.round(3 * torch.log2(frequencies.clamp(min=1) / LOWEST_HZ))
    bands = torch.stack([power[:, place == i].mean(1) for i in range(len(octaves))], dim=1)
    level = 10 * bands.clamp(min=_SMALLEST).log10()
    level = torch.maximum(level, level.amax(1, keepdim=True) - RANGE_DB)
    centred = octaves - octaves.mean()
    slope = level @ centred / centred.square().sum()
    return torch.where(power.sum(1) > _SMALLEST, slope, torch.nan)


def level_of_highs(waveforms: Tensor, sample_rate: int) -> Tensor:
    """Return the power above 5 kHz against the whole, (B,) in dB, -80 at the least; NaN for silence."""
    power = mean_spectrum(waveforms)
    above = torch.arange(N_FFT // 2 + 1) * sample_rate / N_FFT > HIGHS_HZ
    total = power.sum(1)
    share = 10 * (power[:, above].sum(1) / total.clamp(min=_SMALLEST)).clamp(min=_SMALLEST).log10()
    return torch.where(total > _SMALLEST, share.clamp(min=-RANGE_DB), torch.nan)


def silent_fraction(waveforms: Tensor, sample_rate: int) -> Tensor:
    """Return the share of frames of 20 ms below -60 dB of full scale, (B,) from 0 to 1."""
    frames = waveforms[:, 0].detach().cpu().double().unfold(1, *(2 * [round(FRAME_SECONDS * sample_rate)]))
    level = 10 * frames.square().mean(2).clamp(min=_SMALLEST).log10()
    return (level < SILENT_DB).double().mean(1)
