"""The notes that a transcriber hears in music, and what they are like: Basic Pitch (Bittner et al. 2022).

A note is a stretch of time in which the model gives a key more than 0.5; where an onset begins inside it, the
next note begins. There is no shortest note: that notes do not hold is what is to be heard.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from Libraries.Measures.Distances import Values, values_per_clip
from Libraries.Measures.Tagger import resample

MODEL = Path(__file__).resolve().parents[2] / "Models" / "released" / "notes" / "nmp.onnx"

SAMPLE_RATE, HOP = 22_050, 256  # Hz, samples: 86 frames a second
WINDOW = 43_844  # samples that the model takes
OVERLAP = 30  # frames that two windows share; half of them are cut off on either side
LOWEST_KEY = 21  # MIDI, the piano's lowest A
BINS_PER_KEY = 3  # of the contour; a key's own is the second
THRESHOLD = 0.5  # of the model's note and onset
_STEM = 3  # frames: an onset this near to a note's start is its own
_REACH = 2  # bins on either side of a key's own in which its pitch is looked for: 67 cents
_STEADY_FRAMES = 8  # 93 ms: less says nothing about how steady a pitch is
_FEWEST_NOTES = 4  # in a clip, for its tuning and its key to mean something
_SCALE = np.array([0, 2, 4, 5, 7, 9, 11])  # of a major key and its relative minor


@dataclass(frozen=True, eq=False)
class Posteriors:
    """What the model says of clips, float32 from 0 to 1: a frame is 11.6 ms."""

    note: np.ndarray  # (B, T, 88) keys
    onset: np.ndarray  # (B, T, 88)
    contour: np.ndarray  # (B, T, 264), three bins a key


@dataclass(frozen=True, eq=False)
class Notes:
    """The notes of a set of clips, in columns (M,) ordered by clip and then by start."""

    clip: np.ndarray  # int64, from 0
    key: np.ndarray  # int64, MIDI
    start: np.ndarray  # s
    seconds: np.ndarray
    struck: np.ndarray  # bool: an onset was heard where it begins
    cents: np.ndarray  # mean distance of its pitch from its key; NaN where it is too short
    spread: np.ndarray  # deviation of its pitch over its length, in cents; NaN where it is too short
    clips: int
    clip_seconds: float


def transcribe(waveforms: Tensor, sample_rate: int, batch_size: int = 8) -> Posteriors:
    """Run the model over waveforms (B, 1, L) float32 of any one length; Hz."""
    waves = resample(waveforms, sample_rate, SAMPLE_RATE)[:, 0].numpy()
    edge, step = OVERLAP // 2, WINDOW - OVERLAP * HOP
    n_windows = -(-waves.shape[1] // step)
    padded = np.pad(waves, ((0, 0), (edge * HOP, n_windows * step + OVERLAP * HOP)))
    parts = [
        [_run(padded[i : i + batch_size, w * step : w * step + WINDOW]) for w in range(n_windows)]
        for i in range(0, len(waves), batch_size)
    ]
    n_frames = waves.shape[1] // HOP

    def joined(output: int) -> np.ndarray:
        batches = (np.concatenate([w[output][:, edge:-edge] for w in windows], axis=1) for windows in parts)
        return np.concatenate([batch[:, :n_frames] for batch in batches])

    return Posteriors(joined(0), joined(1), joined(2))


def find_notes(posteriors: Posteriors) -> Notes:
    """Return the notes in what the model says."""
    B, T, _ = posteriors.note.shape
    onset = _peaks(posteriors.onset)
    clip, row, first, last = _stretches(posteriors.note > THRESHOLD, onset)
    around = [np.clip(first + shift, 0, T - 1) for shift in range(-_STEM, _STEM + 1)]
    struck = np.any([onset[clip, frame, row] for frame in around], axis=0)
    pitch = [_pitch(posteriors.contour, *note) for note in zip(clip, row, first, last, strict=True)]
    cents, spread = np.array(pitch).reshape(-1, 2).T
    order = np.lexsort((first, clip))
    columns = clip, row + LOWEST_KEY, first * HOP / SAMPLE_RATE, (last - first) * HOP / SAMPLE_RATE
    columns = (column[order] for column in (*columns, struck, cents, spread))
    return Notes(*columns, clips=B, clip_seconds=T * HOP / SAMPLE_RATE)


def note_measures(notes: Notes) -> dict[str, Values]:
    """Return what notes are like, by the measure's name: see `Description.UNITS` for the units."""
    return {
        "note length": Values(notes.seconds, notes.clip, notes.clips),
        "note steadiness": _where_known(notes.spread, notes),
        "distance to the grid": distance_to_grid(notes),
        "onsets": values_per_clip(onsets_per_second(notes)),
        "polyphony": values_per_clip(polyphony(notes)),
        "notes in the best key": values_per_clip(share_in_best_key(notes)),
    }


def distance_to_grid(notes: Notes) -> Values:
    """Return how far, in cents, each note is from equal temperament in its clip's own tuning.

    The tuning is the circular mean of its notes' places between two keys, weighted by their length.
    """
    known = np.isfinite(notes.cents)
    angle = 2 * np.pi * notes.cents[known] / 100
    clip, weight = notes.clip[known], notes.seconds[known]
    sums = [np.bincount(clip, weight * part(angle), notes.clips) for part in (np.sin, np.cos)]
    distance = np.abs(np.angle(np.exp(1j * (angle - np.arctan2(*sums)[clip])))) * 100 / (2 * np.pi)
    enough = np.bincount(clip, minlength=notes.clips)[clip] >= _FEWEST_NOTES
    return Values(distance[enough], clip[enough], notes.clips)


def onsets_per_second(notes: Notes) -> np.ndarray:
    """Return how many notes are struck in a second of each clip: (B,)."""
    return np.bincount(notes.clip, notes.struck, notes.clips) / notes.clip_seconds


def polyphony(notes: Notes) -> np.ndarray:
    """Return how many notes sound at a time, where any does: (B,), NaN for a clip without notes."""
    grid = np.zeros((notes.clips, round(notes.clip_seconds * SAMPLE_RATE / HOP) + 1), np.int64)
    frames = (np.round(seconds * SAMPLE_RATE / HOP).astype(int) for seconds in (notes.start, notes.seconds))
    first, length = frames
    np.add.at(grid, (notes.clip, first), 1)
    np.add.at(grid, (notes.clip, first + length), -1)
    sounding = grid.cumsum(axis=1)
    with np.errstate(invalid="ignore"):
        return sounding.sum(axis=1) / (sounding > 0).sum(axis=1)


def share_in_best_key(notes: Notes) -> np.ndarray:
    """Return how much of the notes' time the best diatonic scale holds: (B,) in %, NaN below 4 notes."""
    time = np.zeros((notes.clips, 12))
    np.add.at(time, (notes.clip, notes.key % 12), notes.seconds)
    in_scale = [time[:, (_SCALE + tonic) % 12].sum(axis=1) for tonic in range(12)]
    enough = np.bincount(notes.clip, minlength=notes.clips) >= _FEWEST_NOTES
    with np.errstate(invalid="ignore"):
        return np.where(enough, 100 * np.max(in_scale, axis=0) / time.sum(axis=1), np.nan)


@lru_cache
def _session() -> onnxruntime.InferenceSession:
    if not MODEL.exists():
        raise FileNotFoundError(f"{MODEL} is missing: its README says which wheel holds it")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])


def _run(windows: np.ndarray) -> list[np.ndarray]:
    """Return note, onset and contour of windows (B, 43844)."""
    names = [f"StatefulPartitionedCall:{output}" for output in (1, 2, 0)]
    return _session().run(names, {"serving_default_input_2:0": windows[..., None]})


def _peaks(onset: np.ndarray) -> np.ndarray:
    """Return where an onset is heard: local maxima in time above the threshold, bool (B, T, 88)."""
    before = np.pad(onset, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    after = np.pad(onset, ((0, 0), (0, 1), (0, 0)))[:, 1:]
    return (onset > THRESHOLD) & (onset > before) & (onset >= after)


def _stretches(sounding: np.ndarray, onset: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return clip, row, first frame and frame after the last of every note, by key."""
    edge = np.pad(sounding, ((0, 0), (1, 1), (0, 0))).astype(np.int8)
    change = np.diff(edge, axis=1).transpose(0, 2, 1)  # (B, 88, T + 1)
    begins, ends = change > 0, change < 0
    settled = np.zeros_like(begins)  # sounding for `_STEM` frames already
    settled[:, :, _STEM:-1] = np.all(
        [np.roll(edge[:, 1:-1], shift, axis=1) for shift in range(_STEM + 1)], axis=0
    ).transpose(0, 2, 1)[:, :, _STEM:]
    struck_again = np.zeros_like(begins)
    struck_again[:, :, :-1] = onset.transpose(0, 2, 1)
    struck_again &= settled
    clip, row, first = np.nonzero(begins | struck_again)
    last = np.nonzero(ends | struck_again)[2]
    return clip, row, first, last


def _pitch(contour: np.ndarray, clip: int, row: int, first: int, last: int) -> tuple[float, float]:
    """Return the mean distance in cents of a note's pitch from its key, and its deviation."""
    first, last = first + 2, last - 2  # where it begins and ends, the contour rises and fades
    if last - first < _STEADY_FRAMES:
        return float("nan"), float("nan")
    centre = BINS_PER_KEY * row + 1
    low, high = max(0, centre - _REACH), min(contour.shape[2], centre + _REACH + 1)
    weights = contour[clip, first:last, low:high].astype(np.float64) ** 2
    cents = weights @ (np.arange(low, high) - centre) / weights.sum(axis=1) * 100 / BINS_PER_KEY
    return float(cents.mean()), float(cents.std())


def _where_known(column: np.ndarray, notes: Notes) -> Values:
    known = np.isfinite(column)
    return Values(column[known], notes.clip[known], notes.clips)
