"""Read rows of a dataset's spectrograms.npy."""

import math
import os
from pathlib import Path

import numpy as np

from Libraries.Dataset.Manifest import DatasetError
from Libraries.Disk import disk_errors


class Rows:
    """The rows of a .npy file of float16, read when asked for; safe in forked processes.

    Not memory-mapped: in a map an error of the disk ends the process (SIGBUS), and every row that was read
    counts as the memory of each process that read it.

    Raises:
        DatasetError: the file is no .npy of float16 and this shape.
        DiskError: the disk does not give it.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]):
        self.path, self.shape = path, shape
        with disk_errors(path, "read"):
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - for as long as the dataset is read
            try:
                found = self._read_header()
            except Exception as error:  # of any type: the header is a Python literal
                if isinstance(error, OSError):
                    raise
                reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
                raise DatasetError(f"{path} cannot be read ({reason}): build the dataset again") from None
        if found != (np.float16, shape):
            raise DatasetError(
                f"{path} holds {found[0]} {found[1]}, not float16 as its manifest says: build it again"
            )

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        """Return rows by their numbers, int64 (B,), as float16 (B, *shape[1:])."""
        rows = np.empty((len(numbers), *self.shape[1:]), np.float16)
        size = 2 * math.prod(self.shape[1:])
        with disk_errors(self.path, "read"):
            for row, number in zip(rows, numbers.tolist(), strict=True):
                content = os.pread(self._file.fileno(), size, self._start + number * size)
                if len(content) < size:
                    raise DatasetError(f"{self.path} is cut short: build the dataset again")
                row[...] = np.frombuffer(content, np.float16).reshape(row.shape)
        return rows

    def _read_header(self) -> tuple[np.dtype, tuple[int, ...]]:
        version = np.lib.format.read_magic(self._file)
        if version != (1, 0):
            raise ValueError(f"version {version}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(self._file)
        self._start = self._file.tell()
        return dtype, shape
