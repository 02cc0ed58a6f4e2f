"""The manifest of a dataset: settings, sources, clips; and which piece goes into which split."""

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from Libraries.Dataset.ClipTable import SPLITS, ClipTable, SourceTable
from Libraries.Disk import disk_errors
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Utils import printable, require

MANIFEST = "manifest.json"
SPECTROGRAMS = "spectrograms.npy"  # all rows in one file
SHARDS = "shards"  # or a folder: a file of rows per source, and the tables of sources and clips
EXECUTORS = ("local", "ray")
FORMAT = 1  # raise it when rows of the same settings would come out different
INVERSE_ONLY = ("phase", "band_inverse", "griffin_lim_iterations")  # these do not affect what is on disk


class DatasetError(ValueError):
    """A dataset that cannot be built or read; the message says which, why and what to do."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """How audio becomes a dataset, and what varies each time a clip is read; values live in `Conf.py`.

    Raises:
        ValueError: a setting is impossible; the sentence names it, its value and what is allowed.
    """

    name: str  # the dataset's folder below Data
    overlap: float  # of neighbouring clips, as a fraction of the frames kept; 0 leaves no gap and no overlap
    split: tuple[float, float, float]  # fractions of the pieces for train, validation, test
    seed: int  # decides which piece goes into which split
    num_workers: int  # processes that encode; 0: this one
    executor: str = "local"  # local | ray (the machines of a cluster, on which num_workers has no effect)
    one_file_clips: int | None = None  # more clips stay in many files, with an index; None: always one file
    silence_db: float  # dB of full scale (RMS); quieter clips are dropped
    pad_short: bool = False  # a file shorter than a clip becomes one, with silence at its end; False: none
    random_gain_db: float = 0.0  # dB up or down at read time; needs normalisation='dataset' to mean anything
    random_polarity: bool  # flip the sign at read time, of representations that have one
    random_swap: bool = False  # swap left and right at read time, in stereo of representations with a sign
    time_shift: bool  # begin at any frame at read time, where the next clip continues this one
    mix: float = 0.0  # fraction of clips to which another is added at read time; for autoencoders

    def __post_init__(self):
        require(EXECUTORS, executor=self.executor)
        rules = {
            "name": (bool(re.fullmatch(r"[\w.-]+", self.name)), "letters, digits, '.', '_' or '-'"),
            "overlap": (0 <= self.overlap < 1, "at least 0 and below 1"),
            "split": (_are_fractions(self.split), "three fractions >= 0 that sum to 1, the first above 0"),
            "seed": (self.seed >= 0, "at least 0"),
            "num_workers": (self.num_workers >= 0, "at least 0"),
            "one_file_clips": (
                self.one_file_clips is None or self.one_file_clips >= 0,
                "at least 0, or None",
            ),
            "silence_db": (self.silence_db < 0, "below 0"),
            "random_gain_db": (self.random_gain_db >= 0, "at least 0"),
            "mix": (0 <= self.mix <= 1, "from 0 to 1"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)!r} must be {rule}")

    def stride_frames(self, spectrogram: SpectrogramConfig) -> int:
        """Return the whole frames from one clip's start to the next, so that clips can be joined."""
        return max(1, round(spectrogram.n_frames * (1 - self.overlap)))


def load_manifest(folder: Path) -> dict:
    """Return the manifest of a finished dataset.

    Keys: `settings` (all that decided the content), `stride_frames`, `shape` (N, C, F, T), `sha256` of the
    rows, `classes`, `gain` ([offset, scale], of the dataset or typical of its training split), `sources`
    (file, fingerprint, seconds, silent_clips, skipped: why or None) and `clips` (source, offset in seconds,
    split, label, gain), one per row of `spectrograms.npy`. Of a dataset in many files, `sources` and `clips`
    are read from its tables when asked for; clips are in the order of the splits, and a source has its
    `split` and `shard`, too. The settings of latents hold the record of their `codec`.

    Raises:
        DatasetError: there is no finished dataset in `folder`, it is of another version, or it is damaged.
        DiskError: the disk does not give it.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file() or not ((folder / SPECTROGRAMS).is_file() or (folder / SHARDS).is_dir()):
        raise DatasetError(
            f"{folder} holds no finished dataset: run Preprocessing, which also resumes an interrupted build"
        )
    try:
        with disk_errors(path, "read"):
            text = path.read_text("utf-8", "surrogateescape")  # names need not be valid UTF-8
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} cannot be read ({error}): build the dataset again") from None
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version != FORMAT:
        raise DatasetError(f"{folder} is of format {version}, not {FORMAT}: build it again")
    if in_shards := "splits" in manifest:
        _open_tables(manifest, folder)
    if wrong := _damage(manifest, in_shards):
        raise DatasetError(f"{path} is damaged, {wrong}: build the dataset again")
    if not in_shards:
        _require_length(folder / SPECTROGRAMS, manifest["shape"])
    encoding = SpectrogramConfig(**manifest["settings"]["spectrogram"])
    manifest["settings"]["spectrogram"] = asdict(encoding)  # settings younger than the dataset, too
    return manifest


def _require_length(path: Path, shape: list[int]) -> None:
    header = path.stat().st_size - 2 * math.prod(shape) if path.is_file() else 0
    if not 0 < header < 4096:
        raise DatasetError(f"{path} is not as long as {MANIFEST} says: build it again")


def _open_tables(manifest: dict, folder: Path) -> None:
    """Give the manifest of a dataset in many files its `sources` and `clips`."""
    counts = manifest["splits"]
    if not (isinstance(counts, dict) and set(counts) == set(SPLITS) and all(map(_is_count, counts.values()))):
        raise DatasetError(f"{folder / MANIFEST} is damaged, 'splits' is wrong: build the dataset again")
    try:
        clips = ClipTable.load(folder / SHARDS, counts)
    except Exception as error:  # of any type: the header is a Python literal
        if isinstance(error, OSError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise DatasetError(f"{folder / SHARDS} cannot be read ({reason}): build the dataset again") from None
    manifest |= {"sources": clips.sources, "clips": clips}


def _damage(manifest: dict, in_shards: bool) -> str:
    """Return what is wrong with a manifest, "" if nothing is; tables too long to read are not looked into."""
    if wrong := _misfit(manifest, _MANIFEST):
        return wrong
    N, *shape = manifest["shape"]
    try:
        wanted = SpectrogramConfig(**manifest["settings"]["spectrogram"]).shape
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        return f"its spectrogram's settings are none ({str(error)[:100]})"
    wanted = tuple(shape) if "codec" in manifest["settings"] else wanted
    if tuple(shape) != wanted or len(manifest["clips"]) != N:
        return (
            f"its shape {manifest['shape']} is not that of its {len(manifest['clips'])} clips, {wanted} each"
        )
    if in_shards:
        return ""
    for part, schema in (("sources", _SOURCE), ("clips", _CLIP)):
        for i, entry in enumerate(manifest[part]):
            if wrong := _misfit(entry, schema):
                return f"{wrong} in number {i} of its {part}"
    if not {clip["source"] for clip in manifest["clips"]} <= {
        source["file"] for source in manifest["sources"]
    }:
        return "a clip is of no source"
    labels = {clip["label"] for clip in manifest["clips"]}
    return "" if labels <= set(range(len(manifest["classes"]))) else "a label has no class"


def _misfit(values: object, schema: dict[str, Callable[[object], bool]]) -> str:
    if not isinstance(values, dict):
        return "there is no record"
    wrong = (name for name, fits in schema.items() if name not in values or not fits(values[name]))
    return next((f"{name!r} is missing or wrong" for name in wrong), "")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < 1e15  # false for NaN too


def _is_gain(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) and value[1] > 0


def _is_list_of(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


_MANIFEST = {
    "settings": lambda value: (
        isinstance(value, dict)
        and {"spectrogram", "dataset"} <= value.keys()
        and all(isinstance(part, dict) for part in value.values())
    ),
    "stride_frames": lambda value: _is_count(value) and value > 0,
    "shape": lambda value: _is_list_of(_is_count)(value) and len(value) == 4,
    "sha256": _is_text,
    "classes": _is_list_of(_is_text),
    "gain": _is_gain,
    "sources": lambda value: isinstance(value, list | SourceTable),
    "clips": lambda value: isinstance(value, list | ClipTable),
}
_SOURCE = {
    "file": _is_text,
    "fingerprint": _is_text,
    "seconds": _is_number,
    "silent_clips": _is_count,
    "skipped": lambda value: value is None or _is_text(value),
}
_CLIP = {
    "source": _is_text,
    "offset": lambda value: _is_number(value) and value >= 0,
    "split": SPLITS.__contains__,
    "label": _is_count,
    "gain": _is_gain,
}


def manifest_hash(folder: Path) -> str:
    """Return the sha256 of the manifest, which includes that of the rows: it identifies a run's data.

    Raises:
        DatasetError: as `load_manifest`.
    """
    load_manifest(folder)
    path = Path(folder) / MANIFEST
    with disk_errors(path, "read"):
        return hashlib.sha256(path.read_bytes()).hexdigest()


def manifest_bytes(manifest: dict) -> bytes:
    """Return the manifest as JSON with one line per clip, so that people can read and compare it."""
    parts = []
    for key, value in manifest.items():
        text = _to_json(value)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            text = "[\n  " + ",\n  ".join(map(_to_json, value)) + "\n ]"
        parts.append(f" {_to_json(key)}: {text}")
    return ("{\n" + ",\n".join(parts) + "\n}\n").encode("utf-8", "surrogateescape")


def content_settings(spectrogram: SpectrogramConfig, config: DatasetConfig) -> dict:
    """Return every setting that the manifest records, as JSON gives it back (tuples become lists).

    `pad_short` is recorded where it is on; older datasets do not know it.
    """
    names = ("overlap", "split", "seed", "silence_db", *(("pad_short",) if config.pad_short else ()))
    dataset = {name: getattr(config, name) for name in names}
    return json.loads(json.dumps({"spectrogram": asdict(spectrogram), "dataset": dataset}))


def pads_short(manifest: dict) -> bool:
    """Return whether files shorter than a clip were padded."""
    return manifest["settings"]["dataset"].get("pad_short", False)


def differences(manifest: dict, settings: dict, sources: list[dict]) -> list[str]:
    """Return how a dataset on disk differs from the one wanted, one phrase per difference."""
    found = []
    for part in manifest["settings"].keys() | settings.keys():
        there, wanted = manifest["settings"].get(part, {}), settings.get(part, {})
        for name in sorted((there.keys() | wanted.keys()) - set(INVERSE_ONLY)):
            if there.get(name) != wanted.get(name):
                found.append(f"{name} is {there.get(name)!r} there and {wanted.get(name)!r} here")
    before = {source["file"]: source["fingerprint"] for source in manifest["sources"]}
    now = {source["file"]: source["fingerprint"] for source in sources}
    changed = [file for file in now if file in before and now[file] != before[file]]
    for files, what in ((now.keys() - before, "new"), (before.keys() - now, "gone"), (changed, "changed")):
        if files:
            first = printable(min(files))
            found.append(f"{len(files)} audio files are {what} ({first}{', ...' if len(files) > 1 else ''})")
    return found


def piece_of(file: str) -> str:
    """Return the name that files of one piece share: the stem, whatever its case, suffix or folder."""
    return unicodedata.normalize("NFC", PurePosixPath(file).stem).casefold()


def clips_of(manifest: dict, split: str) -> Sequence[dict]:
    """Return the clips of a split; where there are too many to hold, each is made when it is asked for."""
    clips = manifest["clips"]
    if isinstance(clips, ClipTable):
        return clips.of(split)
    return [clip for clip in clips if clip["split"] == split]


def pieces_of(manifest: dict, split: str) -> set[str]:
    """Return the pieces of a split, by `piece_of`."""
    if isinstance(manifest["sources"], SourceTable):
        return {piece_of(source["file"]) for source in manifest["sources"] if source["split"] == split}
    return {piece_of(clip["source"]) for clip in clips_of(manifest, split)}


def class_of(file: str, has_folders: bool) -> str:
    """Return the class of a source: its first folder, where the audio folder has folders."""
    if not has_folders:
        return "all"
    parts = PurePosixPath(file).parts
    return parts[0] if len(parts) > 1 else "(no folder)"


def split_pieces(pieces: Iterable[str], fractions: tuple[float, float, float], seed: int) -> dict[str, str]:
    """Assign each piece to a split.

    Pieces are ordered by a hash of seed and name, so that the split depends neither on the disk's order nor,
    except for pieces at a border, on what else is in the folder. With three pieces or more, no split with a
    fraction above 0 is empty; with fewer, the training split comes first, then validation.
    """

    def rank(piece: str) -> bytes:
        return hashlib.sha256(f"{seed}:{piece}".encode("utf-8", "surrogateescape")).digest()

    ordered = sorted(set(pieces), key=rank)
    room = len(ordered) - 1  # one piece is always left to train on
    counts = {}
    for split, fraction in zip(SPLITS[1:], fractions[1:], strict=True):
        counts[split] = min(room, max(1, round(fraction * len(ordered)))) if fraction > 0 else 0
        room -= counts[split]
    names = [split for split, count in counts.items() for _ in range(count)]
    names += ["train"] * (len(ordered) - len(names))
    return dict(zip(ordered, names, strict=True))


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _are_fractions(split: tuple) -> bool:
    return len(split) == 3 and min(split) >= 0 and split[0] > 0 and abs(sum(split) - 1) < 1e-6
