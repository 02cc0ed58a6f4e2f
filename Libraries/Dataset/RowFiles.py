"""Where the rows of a dataset lie: in one file, or in as many as it has sources; a reader does not notice."""

import math
from functools import cached_property
from pathlib import Path

import numpy as np

from Libraries.Dataset.ClipTable import SourceTable
from Libraries.Dataset.Manifest import DatasetError

ROWS = ".rows"  # float16 (C, F, T), one after the other, with no header


class OneFile:
    """All rows in one `.npy` file, mapped into memory when the first is read.

    Args:
        shape: (N, C, F, T).
    """

    def __init__(self, path: Path, shape: tuple[int, ...]):
        self.path, self.shape = Path(path), shape

    def read(self, records: np.ndarray) -> np.ndarray:
        """Return the rows of clips, float16 (B, C, F, T).

        Raises:
            DatasetError: the file cannot be read, or holds something else.
        """
        return self._memmap[records["row"]]

    @cached_property
    def _memmap(self) -> np.ndarray:
        try:
            rows = np.lib.format.open_memmap(self.path, mode="r")
        except Exception as error:  # of any type: the header is a Python literal
            reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
            raise DatasetError(f"{self.path} cannot be read ({reason}): build the dataset again") from None
        if rows.dtype != np.float16 or rows.shape != self.shape:
            found = f"{rows.dtype} {rows.shape}"
            raise DatasetError(f"{self.path} holds {found}, not float16 as its manifest says: build it again")
        return rows

    def __getstate__(self) -> dict:
        """Leave out the memory map, which would pickle all of its data; a worker process opens its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_memmap"}


class ShardRows:
    """A file of rows for each source.

    Args:
        sources: the table that names each source's `shard`.
        shape: (C, F, T).
    """

    def __init__(self, folder: Path, sources: SourceTable, shape: tuple[int, ...]):
        self.folder, self.sources, self.shape = Path(folder), sources, shape

    def read(self, records: np.ndarray) -> np.ndarray:
        """Return the rows of clips, float16 (B, C, F, T).

        Raises:
            DatasetError: a shard is missing or cut short.
        """
        rows = np.empty((len(records), *self.shape), np.float16)
        order = np.lexsort((records["row"], records["source"]))  # a shard is opened once, and read forwards
        for group in np.split(order, np.flatnonzero(np.diff(records["source"][order])) + 1):
            if len(group):
                self._read_shard(int(records["source"][group[0]]), records["row"][group], rows, group)
        return rows

    def _read_shard(self, source: int, places: np.ndarray, rows: np.ndarray, group: np.ndarray) -> None:
        path, size = self._path(source), 2 * math.prod(self.shape)
        try:
            with open(path, "rb", buffering=0) as file:
                for i, place in zip(group, places.tolist(), strict=True):
                    file.seek(place * size)
                    if file.readinto(rows[i]) != size:
                        raise DatasetError(f"{path} ends before clip {place}: build the dataset again")
        except OSError as error:
            raise DatasetError(f"{path} cannot be read ({error.strerror}): build the dataset again") from None

    def _path(self, source: int) -> Path:
        try:
            return self.folder / (self.sources[source]["shard"] + ROWS)
        except (LookupError, TypeError, ValueError):
            raise DatasetError(
                f"{self.folder} is damaged, source {source} has no shard: build the dataset again"
            ) from None
