"""Where the rows of a dataset lie: in one file, or in as many as it has sources; a reader does not notice.

Rows are read when asked for, not memory-mapped: in a map an error of the disk ends the process (SIGBUS), and
every row that was read counts as the memory of each process that read it.
"""

import math
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

from Libraries.Dataset.ClipTable import SourceTable
from Libraries.Dataset.Manifest import DatasetError
from Libraries.Disk import disk_errors

ROWS = ".rows"  # float16 (C, F, T), one after the other, with no header


class OneFile:
    """All rows in one `.npy` file, opened when the first is read; safe in forked processes.

    Args:
        shape: (N, C, F, T).
    """

    def __init__(self, path: Path, shape: tuple[int, ...]):
        self.path, self.shape = Path(path), shape

    def read(self, records: np.ndarray) -> np.ndarray:
        """Return the rows of clips, float16 (B, C, F, T).

        Raises:
            DatasetError: the file is no .npy of float16 and this shape, or is cut short.
            DiskError: the disk does not give it.
        """
        rows = np.empty((len(records), *self.shape[1:]), np.float16)
        with disk_errors(self.path, "read"):
            file, start = self._opened
            places = start + records["row"].astype(np.int64) * _bytes_of(self.shape[1:])
            _read_into(rows, file, places)
        return rows

    @cached_property
    def _opened(self) -> tuple[BinaryIO, int]:
        """The file, and where its first row begins."""
        file = open(self.path, "rb", buffering=0)  # noqa: SIM115 - for as long as the dataset is read
        try:
            found = _read_header(file)
        except Exception as error:  # of any type: the header is a Python literal
            if isinstance(error, OSError):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
            raise DatasetError(f"{self.path} cannot be read ({reason}): build the dataset again") from None
        if found != (np.float16, self.shape):
            found = f"{found[0]} {found[1]}"
            raise DatasetError(f"{self.path} holds {found}, not float16 as its manifest says: build it again")
        return file, file.tell()

    def __getstate__(self) -> dict:
        """Leave out the open file; a worker process opens its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}


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
            DatasetError: a shard is cut short.
            DiskError: the disk does not give it.
        """
        rows = np.empty((len(records), *self.shape), np.float16)
        order = np.lexsort((records["row"], records["source"]))  # a shard is opened once, and read forwards
        for group in np.split(order, np.flatnonzero(np.diff(records["source"][order])) + 1):
            if len(group):
                path = self._path(int(records["source"][group[0]]))
                places = records["row"][group].astype(np.int64) * _bytes_of(self.shape)
                with disk_errors(path, "read"), open(path, "rb", buffering=0) as file:
                    _read_into((rows[i] for i in group), file, places)
        return rows

    def _path(self, source: int) -> Path:
        try:
            return self.folder / (self.sources[source]["shard"] + ROWS)
        except (LookupError, TypeError, ValueError):
            raise DatasetError(
                f"{self.folder} is damaged, source {source} has no shard: build the dataset again"
            ) from None


def _bytes_of(shape: tuple[int, ...]) -> int:
    return 2 * math.prod(shape)


def _read_into(rows: Iterable[np.ndarray], file: BinaryIO, places: np.ndarray) -> None:
    """Read the rows that begin at `places` bytes; processes that share the file do not disturb each other."""
    for row, place in zip(rows, places.tolist(), strict=True):
        content = os.pread(file.fileno(), row.nbytes, place)
        if len(content) < row.nbytes:
            raise DatasetError(f"{file.name} is cut short: build the dataset again")
        row[...] = np.frombuffer(content, np.float16).reshape(row.shape)


def _read_header(file: BinaryIO) -> tuple[np.dtype, tuple[int, ...]]:
    """Return type and shape of a .npy file, and leave it where its first row begins."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"version {version}")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return dtype, shape
