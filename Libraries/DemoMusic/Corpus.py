"""A demo corpus without a download: the scores of `Scores.py`, played into folders of audio files."""

import hashlib
import json
from dataclasses import MISSING, asdict, dataclass, fields
from math import ceil
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
from tqdm.auto import tqdm

from Libraries.DemoMusic.Ensembles import ENSEMBLES, Ensemble
from Libraries.DemoMusic.Fonts import (
    BUILT_IN,
    BUILT_IN_FILE,
    describe_soundfont,
    find_soundfont,
    open_soundfont,
)
from Libraries.DemoMusic.Playing import PlayingConfig, perform
from Libraries.DemoMusic.Room import ROOMS, place_in_room
from Libraries.DemoMusic.Scores import (
    SOURCES,
    Score,
    corpus_folder,
    list_scores,
    load_score,
    parse_score,
    read_score,
)
from Libraries.DemoMusic.SoundFont import Note, SoundFont
from Libraries.Disk import deferring, remove_leftovers, write_then_rename, write_whole
from Libraries.Utils import require

MANIFEST = "manifest.json"
PIECES_AT_LEAST = 8  # per ensemble with that many clips, so that a split by file has something to split

_LOUDNESS = (-19.0, -15.0)  # dB of full scale, RMS of a piece
_PEAK = 0.9  # of full scale, where that loudness would exceed it
_TAIL = 0.8  # s of sound after a piece's last note
_FADE = 0.05  # s at the end of a piece, which may be the middle of a phrase


@dataclass(frozen=True, kw_only=True)
class DemoMusicConfig:
    """How much demo music to make, and for which ensembles.

    Raises:
        ValueError: a setting is impossible; the sentence names it, its value and what is allowed.
    """

    clips: int | None  # of clip_seconds each, over all ensembles; None if minutes is set
    minutes: float | None = None  # over all ensembles, rounded up to whole clips; None if clips is set
    clip_seconds: float  # s, of a recording
    ensembles: tuple[str, ...]  # names from ENSEMBLES
    sample_rate: int  # Hz
    seed: int  # another one, other music
    soundfont: str | None = BUILT_IN  # a path; None: the best of this machine (Fonts.py)
    room: str = "dry"  # or a name from ROOMS
    playing: PlayingConfig | None = None  # how freely; None: evenly

    def __post_init__(self) -> None:
        if (self.clips is None) == (self.minutes is None):
            given = f"clips={self.clips} and minutes={self.minutes}"
            raise ValueError(f"{given}: exactly one must be a number, the other None")
        for name in ("clips", "minutes", "clip_seconds", "sample_rate"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be more than 0")
        require(ROOMS, room=self.room)
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


def render_demo_music(
    folder: Path, config: DemoMusicConfig, cache_dir: Path, channels: int = 1
) -> list[DemoPiece]:
    """Write the demo corpus: `folder/<ensemble>/<score id>.flac` (16-bit) and `folder/manifest.json`.

    Clips are divided evenly among the ensembles, and each file holds a whole number of clips. A score goes to
    one ensemble alone while unplayed scores are left; after that, the files of one score share their stem, so
    group by stem to keep splits apart. The same settings and SoundFont give the same bytes, and a complete
    file is not written again, so an interrupted call resumes. The manifest names the SoundFont that played.

    Args:
        folder: for this corpus alone.
        config: how much, for which ensembles, from which seed, with what sound.
        cache_dir: where parsed scores are kept; one folder serves all settings.
        channels: 1 or 2.

    Returns:
        The pieces, by ensemble and in the order in which their scores were drawn.

    Raises:
        ValueError: the scores do not hold that much music, or `folder` was made with other settings or
            another SoundFont.
        FileNotFoundError: there is no such SoundFont.
        ImportError: `music21` or `pretty_midi` is not installed.
    """
    require((1, 2), channels=channels)
    settings = json.loads(json.dumps(asdict(config) | {"channels": channels}))  # lists for tuples, as in JSON
    made = _read_manifest(folder / MANIFEST)
    if made and (pieces := _whole_pieces(folder, made, settings)):
        return pieces
    font = open_soundfont(config.soundfont)
    played = describe_soundfont(font.path)
    if made:
        _require_font(folder, made, played)
    else:  # before the first file, so that files of other settings cannot mix in
        _write_json(folder / MANIFEST, {"settings": settings, "soundfont": played, "pieces": []})
    remove_leftovers(folder)
    plans = _plan(config, cache_dir)
    pieces = []
    with tqdm(total=config.total_clips, desc="playing", unit="clip") as bar:
        for ensemble, score, clips in plans:
            pieces.append(_render(font, ensemble, score, clips, folder, config, channels))
            bar.update(clips)
    rows = [asdict(piece) | {"path": piece.path.relative_to(folder).as_posix()} for piece in pieces]
    _write_json(folder / MANIFEST, {"settings": settings, "soundfont": played, "pieces": rows})
    return pieces


def corpus_soundfont(folder: Path) -> dict[str, str] | None:
    """Return the name and the SHA-256 of the SoundFont that played a corpus; None if there is no corpus."""
    made = _read_manifest(folder / MANIFEST)
    return made and made["soundfont"]


def write_example(path: Path) -> None:
    """Write nine seconds of Mozart's piano sonata K. 545, 16-bit mono at 32 kHz: `Data/music_file.wav`."""
    file = corpus_folder() / "mozart/k545/movement1_exposition.mxl"
    title, _, notes = parse_score(read_score(file, 0), file.suffix)
    score = Score("k545", title, "Wolfgang Amadeus Mozart", 132.0, (4.0, 6.0), notes)
    sample_rate = 32_000
    played = perform(score, ("piano",), np.random.default_rng(545), transpose=0)
    wave = open_soundfont(BUILT_IN).play(played, 9 * sample_rate, sample_rate)
    wave = _finish(wave, -17.0, sample_rate)
    _write_audio(path, wave, sample_rate)


def play_ensemble(
    font: SoundFont,
    ensemble: Ensemble,
    notes: list[Note],
    n_samples: int,
    sample_rate: int,
    room: str,
    channels: int,
    seed: int,
) -> np.ndarray:
    """Return how an ensemble sounds in a room, or dry: float32 (n_samples,), or (2, n_samples)."""
    if ROOMS[room] is None:
        return font.play(notes, n_samples, sample_rate, channels)
    at = {seat: [] for seat in ensemble.seats}
    for note in notes:
        at[ensemble.seats[note.seat]].append(note)
    dry = ((seat, font.play(own, n_samples, sample_rate)) for seat, own in at.items() if own)
    heard = place_in_room(dry, room, channels, sample_rate, seed)
    return heard[0] if channels == 1 else heard


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


def _perform(score: Score, ensemble: str, config: DemoMusicConfig) -> tuple[list[Note], np.random.Generator]:
    """Return the notes of a piece, and the generator of whatever else is drawn for it."""
    rng = _generator(config.seed, ensemble, score.score_id)
    return perform(score, ENSEMBLES[ensemble].instruments, rng, config.playing), rng


def _clips_in(score: Score, ensemble: str, config: DemoMusicConfig) -> int:
    notes, _ = _perform(score, ensemble, config)
    seconds = max(note.start + note.seconds for note in notes) + _TAIL
    return int(seconds * config.sample_rate) // config.clip_samples


def _render(
    font: SoundFont,
    ensemble: str,
    score: Score,
    clips: int,
    folder: Path,
    config: DemoMusicConfig,
    channels: int,
) -> DemoPiece:
    path = folder / ensemble / f"{score.score_id}.flac"
    n_samples, sample_rate = clips * config.clip_samples, config.sample_rate
    if not _is_whole(path, n_samples, sample_rate, channels):
        notes, rng = _perform(score, ensemble, config)
        sound = (n_samples, sample_rate, config.room, channels, config.seed)
        wave = play_ensemble(font, ENSEMBLES[ensemble], notes, *sound)
        _write_audio(path, _finish(wave, rng.uniform(*_LOUDNESS), sample_rate), sample_rate)
    seconds = n_samples / sample_rate
    return DemoPiece(path, ensemble, score.score_id, score.title, score.composer, seconds)


def _finish(wave: np.ndarray, loudness: float, sample_rate: int) -> np.ndarray:
    """Fade out, scale to a loudness (dB, RMS) as far as the peak allows, and round to int16."""
    fade = min(wave.shape[-1], round(_FADE * sample_rate))
    wave[..., -fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    rms, peak = np.sqrt(np.mean(wave**2)), np.abs(wave).max()
    gain = min(10 ** (loudness / 20) / rms, _PEAK / peak)
    return np.round(wave * (gain * 32767)).astype(np.int16)


def _write_audio(path: Path, wave: np.ndarray, sample_rate: int) -> None:
    def write(file: BinaryIO) -> None:
        with deferring(file) as target:
            soundfile.write(target, wave.T, sample_rate, subtype="PCM_16", format="FLAC")

    write_then_rename(path, write)


def _is_whole(path: Path, n_samples: int, sample_rate: int, channels: int) -> bool:
    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError:  # missing, or not audio
        return False
    return (info.frames, info.samplerate, info.channels) == (n_samples, sample_rate, channels)


def _read_manifest(path: Path) -> dict | None:
    """Return the manifest of a corpus, completed by what is younger than it; None if there is none."""
    if not path.exists():
        return None
    made = json.loads(path.read_text(encoding="utf-8"))
    younger = {f.name: f.default for f in fields(DemoMusicConfig) if f.default is not MISSING}
    built_in = {"name": BUILT_IN_FILE}
    return {"soundfont": built_in, **made, "settings": {**younger, "channels": 1, **made["settings"]}}


def _whole_pieces(folder: Path, made: dict, settings: dict) -> list[DemoPiece]:
    """Return the pieces of a finished corpus, whose scores need not be read again; else nothing.

    Raises:
        ValueError: the corpus has other settings, or another SoundFont than the one that they name.
    """
    other = {name: value for name, value in made["settings"].items() if value != settings.get(name)}
    other.pop("soundfont", None)  # what counts is which one played
    if other:
        raise ValueError(f"{folder} was made with {other}: choose another folder or delete it")
    pieces = [DemoPiece(**row | {"path": folder / row["path"]}) for row in made["pieces"]]
    rate, channels = settings["sample_rate"], settings["channels"]
    if not all(_is_whole(p.path, round(p.seconds * rate), rate, channels) for p in pieces):
        return []
    if pieces and settings["soundfont"] is not None:  # the best of another day is as good
        _require_font(folder, made, {"name": find_soundfont(settings["soundfont"]).name})
    return pieces


def _require_font(folder: Path, made: dict, font: dict[str, str]) -> None:
    """Raise a ValueError if a corpus was played with another SoundFont than this."""
    theirs = made["soundfont"]
    if any(theirs[what] != font[what] for what in theirs.keys() & font.keys()):
        raise ValueError(
            f"{folder} was played with the SoundFont {theirs['name']}, and now {font['name']} would play: "
            "set soundfont to the former, choose another folder or delete it"
        )


def _write_json(path: Path, content: dict) -> None:
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False).encode())
