"""Restore the lost upper band of poorly recorded or stored music, and leave the rest as it is."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor

from Libraries.Sampling.Loop import Callback
from Libraries.Sound.Audio import audio_info
from Libraries.Sound.Spectrogram import Gain, Spectrogram
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Sound.Stereo import load_channels
from Libraries.Upsampler import Upsampler

PASSBAND = 0.9  # fraction of a file's band; above it, the resampling filter has begun to cut
CROSSOVER = 0.05  # fraction of the cut frequency below which the original fades out
HEARD = 20.0  # dB above the floor of the range: a row that rarely reaches this is lost
RARELY = 0.01  # fraction of frames
LEAKED = 5  # bins above the highest one with sound that the window's side lobes make audible


@dataclass(frozen=True)
class Restored:
    """A file before and after; the waveforms are float32 (channels, L) at the model's rate."""

    original: Tensor
    waveform: Tensor
    lost: Tensor  # x0 (1, C, F, T) of the file, silent above the cut
    inpainted: Tensor  # x0 (1, C, F, T) with the rows above the cut inpainted
    rows: int  # number of rows kept
    cut_frequency: float  # Hz; below it `waveform` equals `original`


def restore_file(
    upsampler: Upsampler,
    path: Path,
    *,
    cut_frequency: float | None = None,
    seed: int = 0,
    callback: Callback | None = None,
) -> Restored:
    """Restore the upper band of a file of any length, rate and number of channels (brought to the model's).

    Args:
        cut_frequency: Hz up to which the file is complete; None: the result of `find_cut`, but at most nine
            tenths of the band of a file with a lower rate.
        callback: sees every step.

    Raises:
        AudioError: the file cannot be read.
        ValueError: nothing is missing, or more than the model can restore.
    """
    config = upsampler.spectrogram.config
    waveform = load_channels(path, config.channels, config.sample_rate)
    own = audio_info(path).sample_rate
    if cut_frequency is None and own < config.sample_rate:
        found = find_cut(upsampler, waveform)
        cut_frequency = min(PASSBAND * own / 2, found)
    return restore(upsampler, waveform, cut_frequency=cut_frequency, seed=seed, callback=callback)


def restore(
    upsampler: Upsampler,
    waveform: Tensor,
    *,
    cut_frequency: float | None = None,
    seed: int = 0,
    callback: Callback | None = None,
) -> Restored:
    """Generate the band above `cut_frequency` of music of any length.

    The music is one spectrogram with one gain, whose windows are denoised together, so there are no seams.
    Below the cut the result is the waveform itself, phases included; only the rest is decoded.

    Args:
        waveform: float32 (channels, L), as many as the model has, at its rate.
        cut_frequency: Hz up to which the waveform is complete; None: the result of `find_cut`.
        callback: sees every step.

    Raises:
        ValueError: the waveform has another shape, nothing is missing, or more than the model can restore.
    """
    config = upsampler.spectrogram.config
    if waveform.ndim != 2 or len(waveform) != config.channels or not waveform.shape[1]:
        raise ValueError(f"waveform has shape {tuple(waveform.shape)}; expected ({config.channels}, L)")
    cut = find_cut(upsampler, waveform) if cut_frequency is None else cut_frequency
    rows = rows_below(config, cut)
    if rows >= config.n_rows:
        raise ValueError(
            f"nothing is missing: the music reaches {cut:.0f} Hz, and the model covers up to "
            f"{config.kept_frequency:.0f} Hz"
        )
    lowest = float(config.row_frequencies[upsampler.low.fewest_rows])
    if rows < upsampler.low.fewest_rows:
        raise ValueError(f"too much is missing: the music ends at {cut:.0f} Hz, below {lowest:.0f} Hz")
    spectrogram, x0, gain = _whole(upsampler.spectrogram, waveform)
    inpainted = upsampler.complete(x0, rows, [seed], callback=callback, progress=True)
    full = spectrogram.decode(inpainted, gain)[0, :, : waveform.shape[1]]
    lost = torch.where(torch.arange(config.n_rows)[:, None] < rows, x0, upsampler.low.floor)
    kept_to = float(config.row_frequencies[rows - 1])
    return Restored(
        original=waveform,
        waveform=cross_over(waveform, full, kept_to, config.sample_rate),
        lost=lost,
        inpainted=inpainted,
        rows=rows,
        cut_frequency=kept_to * (1 - CROSSOVER),
    )


def find_cut(upsampler: Upsampler, waveform: Tensor) -> float:
    """Return the frequency in Hz above which music (channels, L) at the model's rate has nothing audible.

    A row is lost if it rises 20 dB above the floor in less than 1 % of the frames. Music that has no highs
    looks the same as music that lost them: pass the cut if you know it.
    """
    config = upsampler.spectrogram.config
    reach = -(-config.win_length // (2 * config.hop_length))  # frames that reach beyond the music
    end = max(reach + 1, waveform.shape[1] // config.hop_length + 1 - reach)
    x0 = _whole(upsampler.spectrogram, waveform)[1][0, ..., reach:end]
    floor = x0.amin()
    heard = floor + HEARD / config.db_range * (x0.amax() - floor)
    present = ((x0 > heard).float().mean(dim=2) > RARELY).any(dim=0).nonzero()
    highest = float(config.row_frequencies[int(present.max())]) if len(present) else 0.0
    if highest == config.kept_frequency:
        return highest
    return max(0.0, highest - LEAKED * config.sample_rate / config.n_fft)


def rows_below(config: SpectrogramConfig, cut_frequency: float) -> int:
    """Return the number of rows below a frequency in Hz; a row ends at the centre of the next."""
    ends = torch.from_numpy(config.row_frequencies)[1:]
    below = int((ends <= cut_frequency).sum())
    return config.n_rows if cut_frequency >= config.kept_frequency else below


def low_pass(waveform: Tensor, frequency: float, sample_rate: int) -> Tensor:
    """Return a waveform (C, L) without its band above a frequency in Hz, to try `restore` on."""
    return cross_over(waveform, torch.zeros_like(waveform), frequency, sample_rate)


def cross_over(low: Tensor, high: Tensor, frequency: float, sample_rate: int) -> Tensor:
    """Join two waveforms (C, L): `low` below a frequency in Hz, `high` above it."""
    hertz = torch.fft.rfftfreq(low.shape[-1], 1 / sample_rate, dtype=torch.float64)
    begin = frequency * (1 - CROSSOVER)
    fraction = ((hertz - begin) / (frequency - begin)).clamp(0, 1)  # of `high`
    fraction = torch.sin(torch.pi / 2 * fraction).square()
    difference = torch.fft.rfft(high.double() - low.double()) * fraction
    return (low.double() + torch.fft.irfft(difference, n=low.shape[-1])).float()


def _whole(spectrogram: Spectrogram, waveform: Tensor) -> tuple[Spectrogram, Tensor, Gain]:
    """Encode a whole waveform (channels, L) as one clip; return the transform, x0 and the gain.

    Silence pads the waveform to at least a clip and to a multiple of `size_multiple` frames.
    """
    config = spectrogram.config
    frames = max(config.n_frames, -(-waveform.shape[1] // config.hop_length) + 1)
    frames = -(-frames // config.size_multiple) * config.size_multiple
    samples = (frames - 1) * config.hop_length
    longer = replace(config, clip_seconds=samples / config.sample_rate)
    gain = Gain(spectrogram.gain_offset, spectrogram.gain_scale)
    whole = Spectrogram(longer, gain, spectrogram.phase_model)
    x0, own = whole.encode_with_gain(nnf.pad(waveform, (0, samples - waveform.shape[1]))[None])
    return whole, x0, own
