"""The clips and sources of a dataset as tables: in memory, or mapped from files where there are too many.

A clip takes 28 bytes of a NumPy record file and a source one line of JSON. Both are read where they lie, and
the processes of a machine share one copy. NumPy's format, which holds the rest of a dataset too, finds a clip
by its number without decoding any other, which Parquet cannot, and asks for no further package.

The price of a memory map is that a disk that fails while a table is read ends the process (SIGBUS). Rows, of
which there are many more bytes, are not mapped (RowFiles.py).
"""

import functools
import json
import mmap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from Libraries.Disk import disk_errors, write_array, write_then_rename

SPLITS = ("train", "validation", "test")
CLIP = np.dtype(
    [
        ("source", "<i4"),  # its number among the sources
        ("row", "<i4"),  # of the dataset's one file, or of the source's shard
        ("label", "<i4"),
        ("offset", "<f8"),  # s in the source
        ("gain", "<f4", 2),  # offset, scale
    ]
)
CLIPS = "clips.npy"  # records of CLIP, split by split
SOURCES = "sources.jsonl"
ENDS = "sources.npy"  # int64, where each line of SOURCES ends
CHUNK = 4096  # records made into Python objects at a time


class SourceTable(Sequence):
    """The sources of a dataset as a manifest lists them, each read when it is asked for.

    Args:
        folder: holds SOURCES and ENDS.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        with disk_errors(self.folder / ENDS, "read"):
            self._ends = np.load(self.folder / ENDS, mmap_mode="r", allow_pickle=False)
        with disk_errors(self.folder / SOURCES, "read"), open(self.folder / SOURCES, "rb") as file:
            self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if self._ends.dtype != np.int64 or not len(self._ends) or self._ends[-1] != len(self._text):
            raise ValueError(f"{ENDS} is not that of {SOURCES}")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> dict:
        i = range(len(self))[i]
        line = self._text[self._ends[i - 1] if i else 0 : self._ends[i]]
        return json.loads(line.decode("utf-8", "surrogateescape"))

    def __reduce__(self):
        return SourceTable, (self.folder,)  # another process maps the files itself


class ClipTable(Sequence):
    """Clips of a dataset: `table[i]` as a manifest lists it, `table.records[i]` as CLIP.

    Args:
        records: (N,) of CLIP, split by split.
        sources: as a manifest lists them.
        counts: clips of each split, in the order of SPLITS.
        folder: from which another process maps the records itself; None: they travel.
        only: the split to see alone.
    """

    def __init__(
        self,
        records: np.ndarray,
        sources: Sequence[dict],
        counts: dict[str, int],
        folder: Path | None = None,
        only: str | None = None,
    ):
        ends = np.cumsum([counts[split] for split in SPLITS])
        first, last = (0, ends[-1]) if only is None else _bounds(ends, only)
        self.records, self._whole = records[first:last], records
        self.sources, self.counts, self.folder, self.only = sources, counts, folder, only
        self._ends = ends - first

    @classmethod
    def load(cls, folder: Path, counts: dict[str, int], only: str | None = None) -> "ClipTable":
        """Map the table in `folder`.

        Raises:
            ValueError: it is not a table of so many clips.
            DiskError: the disk does not give it.
        """
        with disk_errors(Path(folder) / CLIPS, "read"):
            records = np.load(Path(folder) / CLIPS, mmap_mode="r", allow_pickle=False)
        if records.dtype != CLIP or records.shape != (sum(counts.values()),):
            raise ValueError(f"{CLIPS} holds {records.shape} of another type, or not as many as the manifest")
        return cls(records, SourceTable(folder), counts, Path(folder), only)

    @classmethod
    def of_manifest(cls, manifest: dict, split: str) -> "ClipTable":
        """Return one split of a manifest that lists its clips."""
        numbers = {source["file"]: i for i, source in enumerate(manifest["sources"])}
        listed = [(row, clip) for row, clip in enumerate(manifest["clips"]) if clip["split"] == split]
        values = [
            (numbers[clip["source"]], row, clip["label"], clip["offset"], tuple(clip["gain"]))
            for row, clip in listed
        ]
        counts = {name: len(listed) if name == split else 0 for name in SPLITS}
        return cls(np.array(values, CLIP), manifest["sources"], counts)

    def of(self, split: str) -> "ClipTable":
        """Return one split."""
        return ClipTable(self._whole, self.sources, self.counts, self.folder, split)

    @property
    def files(self) -> "Sequence[str]":
        """The file of each clip."""
        return _Files(self)

    def continued(self, positions: np.ndarray, samples: int, sample_rate: int) -> np.ndarray:
        """Return whether the next clip is the same file's, `samples` later; bool (B,)."""
        after = np.minimum(positions + 1, len(self) - 1)
        ours, theirs = self.records[positions], self.records[after]
        apart = np.rint((theirs["offset"] - ours["offset"]) * sample_rate)
        return (after > positions) & (ours["source"] == theirs["source"]) & (apart == samples)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> dict:
        i = range(len(self))[i]
        return self._dict(i, self.records[i].tolist())

    def __iter__(self) -> Iterator[dict]:
        for start in range(0, len(self), CHUNK):
            for i, record in enumerate(self.records[start : start + CHUNK].tolist(), start):
                yield self._dict(i, record)

    def _dict(self, i: int, record: tuple) -> dict:
        source, _, label, offset, gain = record
        split = SPLITS[np.searchsorted(self._ends, i, side="right")]
        file = self._file(source)
        return {"source": file, "split": split, "label": label, "offset": offset, "gain": gain.tolist()}

    @functools.lru_cache(maxsize=64)  # noqa: B019 - a table lives as long as its dataset
    def _file(self, source: int) -> str:
        return self.sources[source]["file"]

    def __reduce__(self):
        if self.folder is None:
            return ClipTable, (self.records, self.sources, self.counts)
        return ClipTable.load, (self.folder, self.counts, self.only)


class _Files(Sequence):
    def __init__(self, table: ClipTable):
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, i: int) -> str:
        return self._table._file(int(self._table.records["source"][i]))


def _bounds(ends: np.ndarray, split: str) -> tuple[int, int]:
    place = SPLITS.index(split)
    return (int(ends[place - 1]) if place else 0), int(ends[place])


def write_sources(folder: Path, sources: Iterable[dict], count: int) -> None:
    """Write `count` sources as SOURCES and ENDS."""
    lengths = np.empty(count, np.int64)

    def write(file: BinaryIO) -> None:
        for i, source in enumerate(sources):
            line = json.dumps(source, ensure_ascii=False) + "\n"
            lengths[i] = file.write(line.encode("utf-8", "surrogateescape"))

    write_then_rename(folder / SOURCES, write)
    write_array(folder / ENDS, np.cumsum(lengths))
