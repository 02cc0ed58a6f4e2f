"""A demo corpus without a download: the scores of `Scores.py`, rendered with a SoundFont into audio folders.

The SoundFont is the TimGM6mb.sf2 of `pretty_midi`; it is not copied into this repository. Neither
the file nor `pretty_midi` states a licence for it. Debian's package timgm6mb-soundfont does, for a revision
of the same font: copyright 2004 Tim Brechbill, 2010 David Bolton; GNU General Public License, version 2.
Its samples are Brechbill's own, in the public domain, or under the GPL, as he wrote in 2009.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
from tqdm.auto import tqdm

from Libraries.DemoMusic.Scores import (
    SOURCES,
    Score,
    corpus_folder,
    list_scores,
    load_score,
    package_folder,
    parse_score,
    read_score,
)
from Libraries.DemoMusic.SoundFont import Note, SoundFont
from Libraries.Disk import deferring, remove_leftovers, write_then_rename, write_whole

MANIFEST = "manifest.json"
PIECES_AT_LEAST = 8  # per ensemble with that many clips, so that a split by file has something to split

_LOUDNESS = (-19.0, -15.0)  # dB of full scale, RMS of a piece
_PEAK = 0.9  # of full scale, where that loudness would exceed it
_TAIL = 0.8  # s of sound after a piece's last note
_FADE = 0.05  # s at the end of a piece, which may be the middle of a phrase
_LONGEST_REST = 1.0  # s


@dataclass(frozen=True)
class Ensemble:
    """Who plays what."""

    sources: tuple[str, ...]  # names from SOURCES, the next when one runs out of scores
    instruments: tuple[str, ...]  # names from INSTRUMENTS, divided among the voices, first to last


INSTRUMENTS = {  # General MIDI program from 0, lowest and highest key
    "piano": (1, 28, 96),
    "harpsichord": (6, 29, 89),
    "music box": (10, 60, 96),
    "organ": (19, 36, 91),
    "accordion": (21, 53, 89),
    "guitar": (24, 40, 83),
    "violin": (40, 55, 96),
    "viola": (41, 48, 84),
    "cello": (42, 36, 76),
    "choir": (52, 41, 81),
    "trumpet": (56, 54, 82),
    "trombone": (57, 40, 72),
    "tuba": (58, 29, 60),
    "horn": (60, 40, 77),
    "oboe": (68, 58, 89),
    "bassoon": (70, 34, 72),
    "clarinet": (71, 50, 89),
    "flute": (73, 60, 96),
    "recorder": (74, 65, 98),
    "banjo": (105, 48, 86),
    "fiddle": (110, 55, 93),
}

_PARTS, _HYMNS = ("quartets", "chorales"), ("chorales", "quartets")
_AIRS, _DANCES = ("airs", "fiddle_tunes"), ("fiddle_tunes", "airs")
ENSEMBLES = {
    "solo_piano": Ensemble(_PARTS, ("piano",)),
    "harpsichord": Ensemble(_PARTS, ("harpsichord",)),
    "string_quartet": Ensemble(_PARTS, ("violin", "violin", "viola", "cello")),
    "woodwind_quartet": Ensemble(_PARTS, ("flute", "oboe", "clarinet", "bassoon")),
    "flute_and_guitar": Ensemble(_PARTS, ("flute", "guitar", "guitar", "guitar")),
    "church_organ": Ensemble(_HYMNS, ("organ",)),
    "choir": Ensemble(_HYMNS, ("choir",)),
    "brass_quartet": Ensemble(_HYMNS, ("trumpet", "horn", "trombone", "tuba")),
    "flute": Ensemble(_AIRS, ("flute",)),
    "recorder": Ensemble(_AIRS, ("recorder",)),
    "acoustic_guitar": Ensemble(_AIRS, ("guitar",)),
    "music_box": Ensemble(_AIRS, ("music box",)),
    "fiddle": Ensemble(_DANCES, ("fiddle",)),
    "accordion": Ensemble(_DANCES, ("accordion",)),
    "banjo": Ensemble(_DANCES, ("banjo",)),
}


@dataclass(frozen=True, kw_only=True)
class DemoMusicConfig:
    """How much demo music to make, and for which ensembles.

    Raises:
        ValueError: a setting is impossible; the sentence names it, its value and what is allowed.
    """

    clips: int | None  # of clip_seconds each, over all ensembles; None if minutes is set
    minutes: float | None = None  # over all ensembles, rounded up to whole clips; None if clips is set
    clip_seconds: float
    ensembles: tuple[str, ...]  # names from ENSEMBLES
    sample_rate: int  # Hz
    seed: int

    def __post_init__(self) -> None:
        if (self.clips is None) == (self.minutes is None):
            given = f"clips={self.clips} and minutes={self.minutes}"
            raise ValueError(f"{given}: exactly one must be a number, the other None")
        for name in ("clips", "minutes", "clip_seconds", "sample_rate"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be more than 0")
        names = self.ensembles
        if not names or len(set(names)) < len(names) or not set(names) <= set(ENSEMBLES):
            raise ValueError(f"ensembles={names} must be some of {', '.join(ENSEMBLES)}, each once")

    @property
    def clip_samples(self) -> int:
        return round(self.clip_seconds * self.sample_rate)

    @property
    def total_clips(self) -> int:
        return ceil(self.minutes * 60 / self.clip_seconds) if self.clips is None else self.clips


@dataclass(frozen=True)
class DemoPiece:
    """One audio file. A score that several ensembles play has the same `score_id` in all their folders."""

    path: Path
    ensemble: str  # the class label
    score_id: str  # the file's stem, for a split by score
    title: str
    composer: str
    seconds: float


def render_demo_music(folder: Path, config: DemoMusicConfig, cache_dir: Path) -> list[DemoPiece]:
    """Write the demo corpus: `folder/<ensemble>/<score id>.flac` (16-bit mono) and `folder/manifest.json`.

    Clips are divided evenly among the ensembles, and each file holds a whole number of clips. A score goes to
    one ensemble alone while unplayed scores are left; after that, the files of one score share their stem, so
    group by stem to keep splits apart. The same settings give the same bytes, and a complete file is not
    written again, so an interrupted call resumes.

    Args:
        folder: for this corpus alone.
        config: how much, for which ensembles, from which seed.
        cache_dir: where parsed scores are kept; one folder serves all settings.

    Returns:
        The pieces, by ensemble and in the order in which their scores were drawn.

    Raises:
        ValueError: the scores do not hold that much music, or `folder` was made with other settings.
        ImportError: `music21` or `pretty_midi` is not installed.
    """
    settings = json.loads(json.dumps(asdict(config)))  # as JSON gives them back: lists for tuples
    _record_settings(folder / MANIFEST, settings)
    if whole := _whole_pieces(folder, config.sample_rate):
        return whole
    remove_leftovers(folder)
    font = SoundFont(find_soundfont())
    plans = _plan(config, cache_dir)
    pieces = []
    with tqdm(total=config.total_clips, desc="playing", unit="clip") as bar:
        for ensemble, score, clips in plans:
            pieces.append(_render(font, ensemble, score, clips, folder, config))
            bar.update(clips)
    rows = [asdict(piece) | {"path": piece.path.relative_to(folder).as_posix()} for piece in pieces]
    _write_json(folder / MANIFEST, {"settings": settings, "pieces": rows})
    return pieces


def write_example(path: Path) -> None:
    """Write nine seconds of Mozart's piano sonata K. 545, 16-bit mono at 32 kHz: `Data/music_file.wav`."""
    file = corpus_folder() / "mozart/k545/movement1_exposition.mxl"
    title, _, notes = parse_score(read_score(file, 0), file.suffix)
    score = Score("k545", title, "Wolfgang Amadeus Mozart", 132.0, (4.0, 6.0), notes)
    sample_rate = 32_000
    played = perform(score, ("piano",), np.random.default_rng(545), transpose=0)
    wave = SoundFont(find_soundfont()).play(played, 9 * sample_rate, sample_rate)
    wave = _finish(wave, -17.0, sample_rate)
    _write_audio(path, wave, sample_rate)


def find_soundfont() -> Path:
    """Return the General MIDI SoundFont of `pretty_midi`; raise an ImportError if that is not installed."""
    return package_folder("pretty_midi") / "TimGM6mb.sf2"


def perform(
    score: Score, instruments: tuple[str, ...], rng: np.random.Generator, transpose: int | None = None
) -> list[Note]:
    """Turn a score into notes to play, a little differently with every state of `rng`.

    `rng` draws tempo, transposition (up to a tritone, unless given), articulation, each voice's loudness, a
    slow swell, and a few milliseconds and velocity steps per note. The first note starts at 0; rests are cut
    to a second; a voice that leaves its instrument's range moves by octaves.
    """
    onset, length, key, voice = score.notes.T
    voice = voice.astype(int)
    quarter = 60 / _tempo(score, rng)  # s
    seconds = length * quarter * rng.uniform(0.9, 1.0)
    start = _close_gaps(onset * quarter, seconds) + rng.normal(0, 0.006, len(onset))
    start -= start.min()
    swell = 6 * np.sin(2 * np.pi * (start / rng.uniform(6, 12) + rng.random()))
    loudness = rng.uniform(72, 92, voice.max() + 1)
    loudness[0] += 8  # the tune is mostly on top
    velocity = np.clip(loudness[voice] + swell + rng.normal(0, 3, len(onset)), 30, 120).astype(int)
    drawn = int(rng.integers(-6, 7))
    key = key.astype(int) + (drawn if transpose is None else transpose)
    program = np.empty_like(key)
    for v in np.unique(voice):
        program[voice == v], *keys = INSTRUMENTS[instruments[v * len(instruments) // len(loudness)]]
        key[voice == v] = _into_range(key[voice == v], *keys)
    columns = (start, seconds, program, key, velocity)
    return [Note(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _tempo(score: Score, rng: np.random.Generator) -> float:
    """Return quarter notes per minute: about the score's own, else what makes its busiest voice lively."""
    own, rate = score.bpm * rng.uniform(0.92, 1.08), rng.uniform(*score.notes_per_second)
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


def _plan(config: DemoMusicConfig, cache_dir: Path) -> list[tuple[str, Score, int]]:
    """Deal scores to the ensembles in turn until all have their clips; return (ensemble, score, clips)."""
    per_ensemble, rest = divmod(config.total_clips, len(config.ensembles))
    missing = {name: per_ensemble + (i < rest) for i, name in enumerate(config.ensembles)}
    longest = ceil(per_ensemble / PIECES_AT_LEAST) or 1
    plans = {name: [] for name in config.ensembles}
    draw = _ScoreDraw(config, cache_dir)
    with tqdm(total=config.total_clips, desc="reading scores", unit="clip") as bar:
        while any(missing.values()):
            for name in (name for name in config.ensembles if missing[name]):
                score = draw.next(name, missing[name])
                clips = min(missing[name], longest, _clips_in(score, name, config))
                missing[name] -= clips
                plans[name] += [(name, score, clips)] if clips else []
                bar.update(clips)
    return [plan for name in config.ensembles for plan in plans[name]]


class _ScoreDraw:
    """Deal scores in an order drawn from the seed; read a score only when it is dealt."""

    def __init__(self, config: DemoMusicConfig, cache_dir: Path) -> None:
        self.cache_dir = cache_dir
        self.played: set[str] = set()
        self.queues: dict[str, dict[str, str]] = {}  # ensemble -> score id -> source, still to come
        orders = {source: _shuffled(source, config.seed) for source in SOURCES}
        for name in config.ensembles:
            self.queues[name] = {key: source for source in ENSEMBLES[name].sources for key in orders[source]}

    def next(self, ensemble: str, missing: int) -> Score:
        """Return the next score that no ensemble has played, else the next that this one has not."""
        queue = self.queues[ensemble]
        while queue:
            score_id = next((key for key in queue if key not in self.played), next(iter(queue)))
            self.played.add(score_id)
            if score := load_score(score_id, queue.pop(score_id), self.cache_dir):
                return score
        raise ValueError(f"{ensemble} has no score left for {missing} more clips: ask for less music")


def _shuffled(source: str, seed: int) -> list[str]:
    names = list(list_scores(source))
    return [names[i] for i in _generator(seed, source).permutation(len(names))]


def _generator(seed: int, *names: str) -> np.random.Generator:
    """Return a generator that depends on seed and names alone, so that no piece depends on another."""
    digest = hashlib.sha256("/".join((str(seed), *names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def _clips_in(score: Score, ensemble: str, config: DemoMusicConfig) -> int:
    notes = perform(score, ENSEMBLES[ensemble].instruments, _generator(config.seed, ensemble, score.score_id))
    seconds = max(note.start + note.seconds for note in notes) + _TAIL
    return int(seconds * config.sample_rate) // config.clip_samples


def _render(
    font: SoundFont, ensemble: str, score: Score, clips: int, folder: Path, config: DemoMusicConfig
) -> DemoPiece:
    path = folder / ensemble / f"{score.score_id}.flac"
    n_samples, sample_rate = clips * config.clip_samples, config.sample_rate
    if not _is_whole(path, n_samples, sample_rate):
        rng = _generator(config.seed, ensemble, score.score_id)
        notes = perform(score, ENSEMBLES[ensemble].instruments, rng)
        wave = _finish(font.play(notes, n_samples, sample_rate), rng.uniform(*_LOUDNESS), sample_rate)
        _write_audio(path, wave, sample_rate)
    seconds = n_samples / sample_rate
    return DemoPiece(path, ensemble, score.score_id, score.title, score.composer, seconds)


def _finish(wave: np.ndarray, loudness: float, sample_rate: int) -> np.ndarray:
    """Fade out, scale to a loudness (dB, RMS) as far as the peak allows, and round to int16."""
    fade = min(len(wave), round(_FADE * sample_rate))
    wave[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    rms, peak = np.sqrt(np.mean(wave**2)), np.abs(wave).max()
    gain = min(10 ** (loudness / 20) / rms, _PEAK / peak)
    return np.round(wave * (gain * 32767)).astype(np.int16)


def _write_audio(path: Path, wave: np.ndarray, sample_rate: int) -> None:
    def write(file: BinaryIO) -> None:
        with deferring(file) as target:
            soundfile.write(target, wave, sample_rate, subtype="PCM_16", format="FLAC")

    write_then_rename(path, write)


def _is_whole(path: Path, n_samples: int, sample_rate: int) -> bool:
    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError:  # missing, or not audio
        return False
    return (info.frames, info.samplerate) == (n_samples, sample_rate)


def _whole_pieces(folder: Path, sample_rate: int) -> list[DemoPiece]:
    """Return the pieces of a finished corpus, whose scores need not be read again; else nothing."""
    rows = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["pieces"]
    pieces = [DemoPiece(**row | {"path": folder / row["path"]}) for row in rows]
    whole = all(_is_whole(piece.path, round(piece.seconds * sample_rate), sample_rate) for piece in pieces)
    return pieces if whole else []


def _record_settings(manifest: Path, settings: dict) -> None:
    """Record the settings before the first file, so that files of other settings cannot mix in."""
    if not manifest.exists():
        _write_json(manifest, {"settings": settings, "pieces": []})
    elif (made := json.loads(manifest.read_text(encoding="utf-8"))["settings"]) != settings:
        other = {name: value for name, value in made.items() if value != settings.get(name)}
        raise ValueError(f"{manifest.parent} was made with {other}: choose another folder or delete it")


def _write_json(path: Path, content: dict) -> None:
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False).encode())
