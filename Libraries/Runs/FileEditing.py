"""Edit a file with a trained run: make a stretch anew, vary it, continue the file, make a loop of it.

What is not asked for is kept as it is, sample by sample: what a model makes is cross-faded in, and where a
band is asked for, only that band of it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor

from Libraries.Runs.CodecEditing import LatentEditor
from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Sampling.Editing import Editor, mask_outside
from Libraries.Sound.Audio import AudioError
from Libraries.Sound.Spectrogram import Gain
from Libraries.Sound.Stereo import load_channels
from Libraries.Utils import require

FADE_SECONDS = 0.02  # from the file to what the model made, within the stretch
SLOPE = 0.1  # of a band's edges, as a fraction of their frequency


@dataclass(frozen=True)
class Stretch:
    """A stretch of music, all of its band or a part of it.

    Raises:
        ValueError: it is empty or begins before the music.
    """

    first: float  # s
    end: float  # s
    low: float = 0.0  # Hz
    high: float = float("inf")  # Hz

    def __post_init__(self):
        for start, stop, unit in ((self.first, self.end, "s"), (self.low, self.high, "Hz")):
            if not 0 <= start < stop:
                given = f"a stretch of {start:g} to {stop:g} {unit}"
                raise ValueError(f"{given} must begin at 0 or later, and end after that")


def load_short(path: Path, channels: int, sample_rate: int, most_seconds: float) -> Tensor:
    """Load a whole file that is not too long, as `Stereo.load_channels`: float32 (channels, L).

    Raises:
        AudioError: it cannot be read, or is longer than `most_seconds`.
    """
    waveform = load_channels(path, channels, sample_rate, duration=most_seconds + 1)
    if waveform.shape[1] > most_seconds * sample_rate:
        raise AudioError(path, f"is longer than {most_seconds / 60:g} minutes: cut it into parts")
    return waveform


@dataclass(frozen=True)
class FileEditor:
    """Edits music of any length, waveforms (channels, L) float32 as the model has them, by a seed.

    Raises:
        ValueError: (any method) the music or a number does not fit; the sentence says which.
    """

    model: DiffusionRun
    editor: Editor | LatentEditor  # `model.editor(...)`

    def remake(self, waveform: Tensor, stretch: Stretch, seed: int, strength: float = 1.0) -> Tensor:
        """Make a stretch anew, to fit what is around it, or vary it; all else comes back unchanged.

        Args:
            stretch: at most a clip long.
            strength: 1: anew (`Editor.inpaint`); less: varied (`Editor.vary`).

        Returns:
            The waveform (channels, L) with the stretch in it.
        """
        config = self.model.spectrogram.config
        rate, hop, L = config.sample_rate, config.hop_length, waveform.shape[1]
        first, end = round(stretch.first * rate), min(round(stretch.end * rate), L)
        if not 0 < end - first <= config.kept_samples:
            longest, length = config.kept_samples / rate, L / rate
            raise ValueError(
                f"the model makes {longest:.2f} s at a time: choose a stretch of the file's {length:.2f} s "
                f"that is no longer, not {stretch.first:.2f} to {stretch.end:.2f} s"
            )
        start = max(0, min((first + end - config.kept_samples) // 2, L - config.kept_samples))
        x0, gain = self._encoded(waveform[:, start:])
        frames = (first - start) // hop, min(-(-(end - start) // hop) + 1, config.n_frames)
        mask = mask_outside(config.shape, frames=frames, rows=self._rows(stretch))
        if strength == 1:
            made = self.editor.inpaint(x0, mask.to(x0.device), [seed])
        else:
            made = self.editor.vary(x0, strength, [seed], mask.to(x0.device))
        music = nnf.pad(self._decoded(made, gain), (start, max(0, L - start - config.kept_samples)))[:, :L]
        change = band_pass(music - waveform, stretch.low, stretch.high, rate)
        return waveform + change * self._weight(L, first, end)

    def extend(self, waveform: Tensor, seconds: float, overlap_seconds: float, seed: int) -> Tensor:
        """Continue music by some seconds; it comes back unchanged, but for less than its last two frames.

        Args:
            overlap_seconds: shared by neighbouring windows of the continuation, in s.
        """
        require("(0, inf)", seconds=seconds)
        config = self.model.spectrogram.config
        known = nnf.pad(waveform, (max(0, config.clip_samples - waveform.shape[1]), 0))  # after silence
        L = known.shape[1] + round(seconds * config.sample_rate)
        start = known.shape[1] - config.clip_samples
        x0, gain = self._encoded(known[:, start:])
        n_frames, overlap = -(-(L - start) // config.hop_length) + 1, config.frames_in(overlap_seconds)
        music = self._decoded(self.editor.extend(x0, n_frames, overlap, [seed]), gain)
        weight = self._weight(L, 0, start + config.kept_samples)
        whole = torch.lerp(nnf.pad(music, (start, 0))[:, :L], nnf.pad(known, (0, L))[:, :L], weight)
        return whole[:, known.shape[1] - waveform.shape[1] :]

    def loop(
        self, waveform: Tensor, first: float, seconds: float, overlap_seconds: float, seed: int
    ) -> Tensor:
        """Make a loop that begins with the clip at `first` s; return one round, to be played over and over.

        Args:
            seconds: length of the loop, at least a clip's; it is rounded to what the model can make.
            overlap_seconds: as in `extend`.
        """
        config = self.model.spectrogram.config
        start = round(first * config.sample_rate)
        clip = waveform[:, start : start + config.clip_samples]
        if clip.shape[1] < config.kept_samples:
            raise ValueError(
                f"a loop begins with a clip of {config.clip_seconds:g} s, and from {first:.2f} s on the "
                f"music has only {clip.shape[1] / config.sample_rate:.2f} s"
            )
        x0, gain = self._encoded(clip)
        n_frames = max(config.frames_in(seconds), config.n_frames)
        loop = self.editor.loop(x0, n_frames, config.frames_in(overlap_seconds), [seed])
        L = loop.shape[-1] * config.hop_length
        rounds = self._decoded(loop.repeat(1, 1, 1, 3), gain)  # the second has its own past and future
        weight = self._weight(L, 0, config.kept_samples, circular=True)
        # no round has the phase of the one before: the second goes on in the third till the clip hides both
        middle = config.kept_samples // 2
        music = torch.cat([rounds[:, 2 * L : 2 * L + middle], rounds[:, L + middle : 2 * L]], dim=1)
        return torch.lerp(music, nnf.pad(clip, (0, L))[:, :L], weight)

    def _encoded(self, waveform: Tensor) -> tuple[Tensor, Gain]:
        """Return x0 (1, C, F, T) of the first clip of music, filled up with silence, and its gain."""
        samples = self.model.spectrogram.config.clip_samples
        clip = nnf.pad(waveform[:, :samples], (0, max(0, samples - waveform.shape[1])))
        x0, gain = self.model.spectrogram.encode_with_gain(clip[None])
        return x0.to(self.model.device), gain

    def _decoded(self, x0: Tensor, gain: Gain) -> Tensor:
        """Return the waveform (channels, L) of x0 (1, C, F, T), T of any length."""
        return self.model.spectrogram.decode(x0.cpu(), gain, any_length=True)[0]

    def _weight(self, L: int, first: int, end: int, *, circular: bool = False) -> Tensor:
        """Return weights (L,): 1 from sample `first` to `end` but for slopes at either end within it, else 0.

        There is no slope at the beginning and the end of music, unless it goes round.
        """
        place, longest = torch.arange(L, dtype=torch.float32), max(1, (end - first) // 2)
        fade = min(round(FADE_SECONDS * self.model.spectrogram.config.sample_rate), longest)
        no_slope = torch.full_like(place, torch.inf)
        rising = (place - first) / fade if first > 0 or circular else no_slope
        falling = (end - 1 - place) / fade if end < L or circular else no_slope
        return torch.minimum(rising, falling).clamp(0, 1)

    def _rows(self, stretch: Stretch) -> tuple[int, int]:
        """Return the first row of the stretch's band and the one after its last."""
        frequencies = torch.from_numpy(self.model.spectrogram.config.row_frequencies)
        inside = ((frequencies >= stretch.low) & (frequencies <= stretch.high)).nonzero()
        if not len(inside):
            top = self.model.spectrogram.config.kept_frequency
            raise ValueError(
                f"no row of the model lies between {stretch.low:.0f} and {stretch.high:.0f} Hz: choose a "
                f"wider band, up to {top:.0f} Hz"
            )
        return int(inside[0]), int(inside[-1]) + 1


def band_pass(waveform: Tensor, low: float, high: float, sample_rate: int) -> Tensor:
    """Return a waveform (C, L) within a band in Hz, whose edges are a tenth of their frequency wide."""
    hertz = torch.fft.rfftfreq(waveform.shape[-1], 1 / sample_rate, dtype=torch.float64)
    if low <= 0 and high >= sample_rate / 2:
        return waveform
    within = torch.ones_like(hertz)
    if low > 0:
        within *= ((hertz - low * (1 - SLOPE)) / (low * SLOPE)).clamp(0, 1)
    if high < sample_rate / 2:
        within *= ((high * (1 + SLOPE) - hertz) / (high * SLOPE)).clamp(0, 1)
    return torch.fft.irfft(torch.fft.rfft(waveform.double()) * within, n=waveform.shape[-1]).float()
