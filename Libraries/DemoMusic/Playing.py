"""Turn a score into notes as somebody plays it: tempo, touch, phrases, a key that suits the instruments."""

from dataclasses import dataclass

import numpy as np

from Libraries.DemoMusic.Ensembles import INSTRUMENTS
from Libraries.DemoMusic.Scores import Score
from Libraries.DemoMusic.SoundFont import Note

_LONGEST_REST = 1.0  # s
_LEAD = 0.01  # s by which a melody is ahead of its accompaniment (Goebl 2001)
_GRID = 1 / 16  # quarter notes; of the tempo curve


@dataclass(frozen=True, kw_only=True)
class PlayingConfig:
    """How freely a score is played; 0 is by the metronome.

    Raises:
        ValueError: a setting is below 0 or too large; the sentence names it.
    """

    timing: float  # s, standard deviation of an onset
    dynamics: float  # velocity steps that a phrase rises from its ends to its middle
    rubato: float  # fraction by which a phrase is slower at its ends than in its middle
    tempo_spread: float  # fraction by which a piece may be faster or slower than its score
    phrase: tuple[float, float]  # shortest and longest, in quarter notes
    any_key: bool  # transpose as far as all voices stay in range, instead of up to a tritone

    def __post_init__(self) -> None:
        for name, most in (("timing", 0.1), ("dynamics", 60), ("rubato", 0.5), ("tempo_spread", 1.0)):
            if not 0 <= (value := getattr(self, name)) <= most:
                raise ValueError(f"{name}={value} must be from 0 to {most}")
        if not 1 <= self.phrase[0] <= self.phrase[1]:
            raise ValueError(f"phrase={self.phrase} must be two numbers of quarter notes, from 1 upwards")


def perform(
    score: Score,
    instruments: tuple[str, ...],
    rng: np.random.Generator,
    playing: PlayingConfig | None = None,
    transpose: int | None = None,
) -> list[Note]:
    """Turn a score into notes to play, a little differently with every state of `rng`.

    `rng` draws tempo, transposition (unless given), articulation, each voice's loudness, its course, and a
    deviation of each note in time and velocity; `playing` says how much. Without it the tempo is within 8 %,
    the transposition within a tritone, and a slow swell stands for phrases. The first note starts at 0; rests
    are cut to a second; a voice that leaves its instrument's range moves by octaves.
    """
    if playing is None:
        start, seconds, velocity = _plainly(score, rng)
    else:
        start, seconds, velocity = _freely(score, rng, playing)
    key, voice = score.notes[:, 2].astype(int), score.notes[:, 3].astype(int)
    seats = np.arange(voice.max() + 1) * len(instruments) // (voice.max() + 1)  # of each voice
    drawn = int(rng.integers(-6, 7))
    if playing is not None and playing.any_key:
        drawn = _draw_key(key, voice, [instruments[seat] for seat in seats], drawn, rng)
    key = key + (drawn if transpose is None else transpose)
    program = np.empty_like(key)
    for v in np.unique(voice):
        program[voice == v], *keys = INSTRUMENTS[instruments[seats[v]]]
        key[voice == v] = _into_range(key[voice == v], *keys)
    columns = (start, seconds, program, key, velocity, seats[voice])
    return [Note(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _plainly(score: Score, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return start and length in s and velocity of each note, at a steady tempo."""
    onset, length, _, voice = score.notes.T
    voice = voice.astype(int)
    quarter = 60 / _tempo(score, rng, (0.92, 1.08))  # s
    seconds = length * quarter * rng.uniform(0.9, 1.0)
    start = _close_gaps(onset * quarter, seconds) + rng.normal(0, 0.006, len(onset))
    start -= start.min()
    swell = 6 * np.sin(2 * np.pi * (start / rng.uniform(6, 12) + rng.random()))
    loudness = rng.uniform(72, 92, voice.max() + 1)
    loudness[0] += 8  # the tune is mostly on top
    velocity = np.clip(loudness[voice] + swell + rng.normal(0, 3, len(onset)), 30, 120).astype(int)
    return start, seconds, velocity


def _freely(
    score: Score, rng: np.random.Generator, playing: PlayingConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return start and length in s and velocity of each note, in phrases.

    A phrase grows louder and faster towards its middle and back, along a parabola (Todd 1992), each phrase
    more or less than the others.
    """
    onset, length, _, voice = score.notes.T
    voice = voice.astype(int)
    spread = 1 + playing.tempo_spread
    quarter = 60 / _tempo(score, rng, (1 / spread, spread))  # s
    grid = np.arange(onset.min(), (onset + length).max() + 2 * _GRID, _GRID)
    place, strength = _phrases(grid, rng, playing.phrase)  # 0 in the middle, 1 at the ends
    slower = 1 + playing.rubato * strength * (place**2 - 1 / 3)  # a third is the mean of the parabola
    clock = np.concatenate([[0], np.cumsum(quarter * _GRID * slower[:-1])])
    begin, end = (np.interp(when, grid, clock) for when in (onset, onset + length))
    seconds = (end - begin) * rng.uniform(0.85, 1.0)
    start = _close_gaps(begin, seconds) + rng.normal(0, playing.timing, len(onset))
    start[voice == 0] -= _LEAD * (voice.max() > 0) * (playing.timing > 0)
    start -= start.min()
    arch = np.interp(onset, grid, strength * (1 / 3 - place**2))
    loudness = rng.uniform(64, 96, voice.max() + 1)
    loudness[0] += 8  # the tune is mostly on top
    velocity = loudness[voice] + playing.dynamics * arch + rng.normal(0, playing.dynamics / 5, len(onset))
    return start, seconds, np.clip(velocity, 20, 124).astype(int)


def _phrases(
    grid: np.ndarray, rng: np.random.Generator, phrase: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each quarter note of `grid` its place in a phrase, -1 to 1, and the phrase's strength."""
    lengths = rng.uniform(*phrase, int(np.ptp(grid) / phrase[0]) + 2)
    ends = grid[0] + np.cumsum(lengths)
    index = np.searchsorted(ends, grid, side="right")
    place = 1 - 2 * (ends[index] - grid) / lengths[index]
    return place, rng.uniform(0.4, 1.6, len(lengths))[index]


def _draw_key(
    key: np.ndarray, voice: np.ndarray, instruments: list[str], else_: int, rng: np.random.Generator
) -> int:
    """Return a transposition that keeps all voices in their instruments' ranges; `else_` if there is none."""
    lowest, highest = -127, 127
    for v in np.unique(voice):
        _, low, high = INSTRUMENTS[instruments[v]]
        lowest = max(lowest, low - key[voice == v].min())
        highest = min(highest, high - key[voice == v].max())
    return int(rng.integers(lowest, highest + 1)) if lowest <= highest else else_


def _tempo(score: Score, rng: np.random.Generator, spread: tuple[float, float]) -> float:
    """Return quarter notes per minute: about the score's own, else what makes its busiest voice lively."""
    own, rate = score.bpm * rng.uniform(*spread), rng.uniform(*score.notes_per_second)
    onset, _, _, voice = score.notes.T
    busiest = max(len(np.unique(onset[voice == v])) for v in np.unique(voice))
    derived = 60 * rate * max(1.0, np.ptp(onset)) / busiest
    return float(np.clip(own if np.isfinite(own) else derived, 40, 240))


def _close_gaps(start: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Return onsets in s, with silences longer than `_LONGEST_REST` cut to that."""
    order = np.argsort(start, kind="stable")
    silent_from = np.maximum.accumulate((start + seconds)[order])[:-1]
    excess = np.maximum(0, start[order][1:] - silent_from - _LONGEST_REST)
    closed = start.copy()
    closed[order[1:]] -= np.cumsum(excess)
    return closed


def _into_range(keys: np.ndarray, low: int, high: int) -> np.ndarray:
    """Move a voice by the octaves that suit most of its keys, then each key still outside by its own."""
    octaves = sorted(range(-36, 37, 12), key=abs)
    keys = keys + min(octaves, key=lambda shift: np.sum((keys + shift < low) | (keys + shift > high)))
    keys = keys + 12 * np.ceil(np.maximum(0, low - keys) / 12).astype(int)
    return keys - 12 * np.ceil(np.maximum(0, keys - high) / 12).astype(int)
