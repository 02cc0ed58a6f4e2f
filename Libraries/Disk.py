"""Write files whole or not at all, hold folders, and say in one sentence what a disk refuses and why."""

import contextlib
import errno
import multiprocessing
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from Libraries.Utils import get_logger, printable

log = get_logger("Disk")


def write_then_rename(path: Path, write: Callable[[BinaryIO], object], size: int = 0) -> None:
    """Call `write(file)` with a temporary file beside `path`, then rename it: `path` is never half written.

    Its bytes have left the cache for the disk before the rename, because what `path` replaces may be deleted
    next. A writer in C or C++ needs `deferring(file)`.

    Args:
        size: bytes that `write` needs at least, if known before.

    Raises:
        DiskError: the disk is full, forbidden, gone or broken; nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.tmp{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        written = temporary.stat().st_size if temporary.exists() else 0
        _remove(temporary)  # first, so that the sentence counts its space as free
        with disk_errors(path, size=max(size, written)):
            raise error from None
    finally:
        _remove(temporary)


def write_whole(path: Path, content: bytes) -> None:
    """Write bytes to `path`, whole or not at all; errors are those of `write_then_rename`."""
    write_then_rename(path, lambda file: file.write(content), size=len(content))


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as .npy, whole or not at all; errors are those of `write_then_rename`."""

    def write(file: BinaryIO) -> None:
        with deferring(file) as target:
            np.save(target, array, allow_pickle=False)

    write_then_rename(path, write, size=array.nbytes)


@contextlib.contextmanager
def deferring(file: BinaryIO) -> Iterator[BinaryIO]:
    """Yield `file` for a writer in C or C++, and raise what the disk answered only after it has finished.

    Such writers forget the reason: torch raises "unexpected pos" or aborts the process, libsndfile says
    "System error" or nothing.
    """
    deferred = _Deferred(file)
    try:
        yield deferred
    finally:
        if deferred.error is not None:
            raise deferred.error


def require_readable(path: Path) -> None:
    """Raise a DiskError if the disk does not give all of a file; readers in C++ do not say why they fail."""
    with disk_errors(path, "read"), open(path, "rb") as file:
        while file.read(2**20):
            pass


class DiskError(OSError):
    """The disk refused to read or write; the message says what, where, why and what to do."""


_GONE = "it or its folder has disappeared", "bring it back (is its disk mounted?)"
_FORBIDDEN = "its permissions forbid that", "change them, or choose another folder (CONF_ROOT)"
_BROKEN = "its disk fails", "check the disk and its connection"
_REFUSALS = {  # why, and what to do
    errno.ENOSPC: ("the disk is full", "make room"),
    errno.EDQUOT: ("your quota on the disk is used up", "make room"),
    errno.EFBIG: ("the file would be larger than the file system or its limit allows", "raise the limit"),
    errno.EROFS: ("its file system is read-only", "make it writable, or choose another folder (CONF_ROOT)"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), _FORBIDDEN),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.ESTALE), _GONE),
    **dict.fromkeys((errno.EIO, errno.ENXIO, errno.ENODEV), _BROKEN),
}


@contextlib.contextmanager
def disk_errors(path: Path, doing: str = "written", size: int = 0) -> Iterator[None]:
    """Raise what the disk answers in the block as a DiskError of one sentence; other errors pass.

    Args:
        path: what is read or written.
        doing: "read" or "written".
        size: bytes that it needs at least; 0: unknown.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:  # a DiskError has none
            raise
        raise DiskError(_sentence(error, Path(path), doing, size)) from None


def _sentence(error: OSError, path: Path, doing: str, size: int) -> str:
    why, advice = _REFUSALS[error.errno]
    if error.errno in (errno.ENOSPC, errno.EDQUOT) and size:
        needs = f"it needs at least {in_units(size)}"
        why += f" ({needs}, and {in_units(free_bytes(path))} are free in {printable(path.parent)})"
    elif error.errno in (errno.EIO, errno.ENXIO, errno.ENODEV):
        why += f" ({error.strerror})"
    whole = "; what was saved before is whole" if doing == "written" else ""
    return f"{printable(path)} could not be {doing}, for {why}: {advice}, then run this again{whole}"


def free_bytes(path: Path) -> int:
    """Return the bytes that are free where `path` is, or where it would be made."""
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def in_units(size: float) -> str:
    """Return a number of bytes as people read it, such as 4.1 MB."""
    for unit, bytes_of_it in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= bytes_of_it:
            return f"{size / bytes_of_it:.3g} {unit}"
    return f"{size:.0f} bytes"


class FolderInUse(RuntimeError):
    """Another process writes to a folder that only one may write to; the message says which."""


@contextlib.contextmanager
def hold(folder: Path, wait: float):
    """Hold a folder for this process while the block runs; the hold ends with the process, even a killed one.

    Args:
        wait: seconds for another process to let go of it; -1: any.

    Raises:
        FolderInUse: another process holds it.
        DiskError: the lock's file cannot be made.
    """
    lock = FileLock(folder / ".lock")
    with disk_errors(folder):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if getattr(multiprocessing.current_process(), "_inheriting", False):
                raise FolderInUse(
                    f"a worker imports the script that builds {folder}, and would wait for it for ever: put "
                    "the script's calls under `if __name__ == '__main__':`"
                ) from None
            log.info("%s is in use by another process: waiting for it", folder)
            try:
                lock.acquire(timeout=wait)
            except Timeout:
                raise FolderInUse(f"{folder} is in use by another process: wait for it, or end it") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def exit_with_the_sentence() -> Iterator[None]:
    """End a script with the sentence of a DiskError or FolderInUse, without the lines that led to it."""
    try:
        yield
    except (DiskError, FolderInUse) as error:
        sys.exit(str(error))


class _Deferred:
    """A file that accepts everything after the first refusal."""

    def __init__(self, file: BinaryIO):
        self.file, self.error = file, None

    def _unless_refused(self, otherwise, call: Callable, *arguments):
        if self.error is None:
            try:
                return call(*arguments)
            except OSError as error:
                self.error = error
        return otherwise

    def write(self, data) -> int:
        return self._unless_refused(len(data), self.file.write, data)

    def read(self, size: int = -1) -> bytes:
        return self._unless_refused(b"", self.file.read, size)

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        return self._unless_refused(0, self.file.seek, place, whence)

    def tell(self) -> int:
        return self._unless_refused(0, self.file.tell)

    def flush(self) -> None:
        self._unless_refused(None, self.file.flush)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of `write_then_rename` below a folder whose process was killed."""
    for path in Path(folder).rglob(".*.tmp*"):
        found = re.search(r"\.tmp(\d+)(\.|$)", path.name)
        if found and (int(found[1]) == os.getpid() or not _is_running(found[1])):
            _remove(path)


def _is_running(pid: str) -> bool:
    return not Path("/proc/self").exists() or Path("/proc", pid).exists()  # without /proc: unknown


def _remove(temporary: Path) -> None:
    with contextlib.suppress(OSError):  # the disk may be gone or read-only
        temporary.unlink(missing_ok=True)
