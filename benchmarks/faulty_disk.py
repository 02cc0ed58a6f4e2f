"""A disk that refuses from a chosen write or read on, for the tests and for `faults.py`."""

import builtins
import contextlib
import errno
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path


class FaultyDisk:
    """Count what is written below a folder, and refuse from number `after` on.

    New files and folders, each portion of bytes and each `fsync` count as writes. A portion that is refused
    leaves its first half behind, as on a real disk that is full. Deleting and renaming go on.

    Args:
        root: the folder; the rest of the disk is healthy.
        after: writes that succeed (`writes`), or reads if `reading`.
        error: what is answered then, such as `errno.ENOSPC`.
        reading: refuse reads instead of writes.
    """

    def __init__(self, root: Path, after: float = math.inf, error: int = errno.ENOSPC, reading: bool = False):
        self.root, self.after, self.error, self.reading = str(root), after, error, reading
        self.count = 0

    @contextlib.contextmanager
    def __call__(self) -> Iterator["FaultyDisk"]:
        """Be that disk while the block runs."""
        real = {(module, name): getattr(module, name) for module, name in _PATCHED}
        for (module, name), function in real.items():
            setattr(module, name, getattr(self, f"_{name}")(function))
        try:
            yield self
        finally:
            for (module, name), function in real.items():
                setattr(module, name, function)

    def step(self) -> None:
        """Count one access, and refuse it if its time has come."""
        self.count += 1
        if self.count > self.after:
            raise OSError(self.error, os.strerror(self.error))

    def _is_below(self, path: object) -> bool:
        return isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(self.root)

    def _open(self, real):
        def opened(file, *arguments, **options):
            if not self._is_below(file):
                return real(file, *arguments, **options)
            return _open(self, file, *arguments, **options)

        return opened

    def _low_open(self, real):
        def opened(path, flags, *arguments, **options):
            if self._is_below(path) and flags & os.O_CREAT and not self.reading and not os.path.exists(path):
                self.step()
            return real(path, flags, *arguments, **options)

        return opened

    def _mkdir(self, real):
        def made(path, *arguments, **options):
            if self._is_below(path) and not self.reading and not os.path.exists(path):
                self.step()
            return real(path, *arguments, **options)

        return made

    def _fsync(self, real):
        def synced(number):
            if not self.reading and os.readlink(f"/proc/self/fd/{number}").startswith(self.root):
                self.step()  # and no more: what is tested is not the real disk

        return synced

    def _pread(self, real):
        def read(number, *arguments):
            if self.reading and os.readlink(f"/proc/self/fd/{number}").startswith(self.root):
                self.step()
            return real(number, *arguments)

        return read


_PATCHED = ((builtins, "open"), (io, "open"), (os, "mkdir"), (os, "fsync"), (os, "pread"))


class _Raw(io.FileIO):
    """A file of a `FaultyDisk`."""

    disk: FaultyDisk

    def write(self, data) -> int:
        if not self.disk.reading:
            try:
                self.disk.step()
            except OSError:
                super().write(bytes(data)[: len(data) // 2])
                raise
        return super().write(data)

    def readinto(self, buffer) -> int:
        if self.disk.reading:
            self.disk.step()
        return super().readinto(buffer)

    def readall(self) -> bytes:
        if self.disk.reading:
            self.disk.step()
        return super().readall()


def _open(disk, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **options):
    """Open as `open` does, on the faulty disk."""
    plain = mode.replace("b", "").replace("t", "")
    if not disk.reading and plain[0] in "wxa" and not os.path.exists(file):
        disk.step()
    raw = _Raw(file, plain, **options)
    raw.disk = disk
    if buffering == 0:
        return raw
    kinds = {True: io.BufferedRandom, False: io.BufferedReader if plain == "r" else io.BufferedWriter}
    buffered = kinds["+" in plain](raw)
    return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)
