"""One audio file -> one shard of a dataset: cut into clips, encoded, written whole or not at all.

A shard is a file of rows and a JSON entry, whose presence marks the shard as complete; so a killed build
keeps what it has made. Shards are made in this process, in several, or by Ray on several machines.

A source may crash its decoder, or need more memory than there is, and so end the process that reads it. While
one is read, an empty file beside its shard says so. If the process dies, the next one finds that file and has
the source read alone, in a process of its own; if that dies too, the source is skipped.
"""

import contextlib
import hashlib
import json
import math
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from tqdm.auto import tqdm

from Libraries.Dataset.Manifest import DatasetError
from Libraries.Dataset.RayExecutor import run_in_ray
from Libraries.Disk import disk_errors, write_then_rename, write_whole
from Libraries.Sound.Audio import AudioError, read_blocks
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Sound.Stereo import to_channels
from Libraries.Utils import get_logger, printable

log = get_logger("Shards")

ENTRIES = 2  # raise it when an entry holds something else than before
BATCH = 16  # clips encoded at a time: fixed, so that rows do not depend on the machine
WORTH_A_WORKER = 1200.0  # s of music; less is encoded before another process has started (about 4 s)
PROBE_BYTES = 65536
REPOSITORY = Path(__file__).resolve().parents[2]
MAKE_ALONE = (
    "import pickle, sys; from Libraries.Dataset.Shards import make_shard; "
    "make_shard(pickle.load(sys.stdin.buffer))"
)


@dataclass(frozen=True)
class ShardTask:
    """All that a worker needs to make one shard; a subclass knows what its rows are made of."""

    file: str  # the source, relative to the audio folder
    fingerprint: str  # of its content when the build began
    shard: Path  # without suffix
    seconds: float  # of music, for the progress bar alone

    def write_rows(self) -> dict:
        """Write the rows; return the entry without `skipped`.

        Raises:
            AudioError: the source cannot be used and is to be skipped.
        """
        raise NotImplementedError

    @property
    def entry_path(self) -> Path:
        """JSON that marks the shard as complete: `skipped`, `seconds`, `silent_clips`, `sha256`, `clips`."""
        return self.shard.with_suffix(".json")

    @property
    def rows_path(self) -> Path:
        """The rows, (C, F, T) each, one after the other."""
        return self.shard.with_suffix(".rows")

    @property
    def reading_path(self) -> Path:
        """An empty file that is there while the source is read."""
        return self.shard.with_suffix(".reading")

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Leave `reading_path` behind if this process dies in the block."""
        with disk_errors(self.reading_path):
            self.reading_path.touch()
        try:
            yield
        finally:
            with disk_errors(self.reading_path):
                self.reading_path.unlink(missing_ok=True)


@dataclass(frozen=True)
class AudioTask(ShardTask):
    """A shard whose rows are the clips of an audio file, encoded."""

    path: Path
    spectrogram: SpectrogramConfig
    stride: int  # samples
    silence_db: float
    pad_short: bool

    def write_rows(self) -> dict:
        """Encode the file clip by clip; rows are float32, not normalised, where the dataset sets the gain."""
        try:
            return self._write_clips()
        except AudioError:
            with disk_errors(self.path.parent, "read"):  # if the folder is gone, it is not the file's fault
                self.path.parent.stat()
            raise

    def _write_clips(self) -> dict:
        clips = _Clips(self)
        digest, entries = write_batches(self.rows_path, _named(self, _encoded(self.spectrogram, clips)))
        seconds = clips.samples / self.spectrogram.sample_rate
        if not entries and clips.silent:
            raise AudioError(self.path, f"is silent: no clip is louder than {self.silence_db:g} dB")
        if not entries:
            length = f"{seconds:.2f} of {self.spectrogram.clip_seconds:g} s"
            raise AudioError(
                self.path, f"is shorter than one clip: {length} (dataset.pad_short would pad it)"
            )
        if fingerprint(self.path) != self.fingerprint:
            raise AudioError(self.path, "has changed while it was read: build again when it is finished")
        return {"seconds": seconds, "silent_clips": clips.silent, "sha256": digest, "clips": entries}


def fingerprint(path: Path) -> str:
    """Return a hash of a file's size and of its head, middle and tail: fast at any size, blind to dates."""
    digest = hashlib.sha256()
    try:
        if not path.is_file():  # a pipe would wait for its writer
            return "unreadable: not a file"
        size = path.stat().st_size
        digest.update(str(size).encode())
        with open(path, "rb") as file:
            for place in (0, size // 2, max(0, size - PROBE_BYTES)):
                file.seek(place)
                digest.update(file.read(PROBE_BYTES))
    except OSError as error:  # reading will fail again and skip the file
        return f"unreadable: {error.strerror}"
    return digest.hexdigest()


def make_shards(tasks: list[ShardTask], num_workers: int, executor: str = "local") -> None:
    """Make every missing shard, with a progress bar in seconds of music.

    Args:
        num_workers: processes that encode; 0: this one, which a file that crashes its decoder would end.
        executor: "ray" leaves to Ray where and how many at a time; the folders are those of all its machines.

    Raises:
        DatasetError: a worker process died that read no file.
        ImportError: Ray is asked for and not installed.
    """
    tasks = [task for task in tasks if not task.entry_path.exists()]
    seconds = sum(task.seconds for task in tasks)
    num_workers = min(num_workers, len(tasks), int(seconds / WORTH_A_WORKER))
    done = run_in_ray(make_or_skip, tasks) if executor == "ray" else _run(tasks, num_workers)
    with tqdm(total=round(seconds), unit=" s of music", desc="Encoding", disable=not tasks) as bar:
        for task in done:
            bar.update(round(task.seconds))


def _run(tasks: list[ShardTask], num_workers: int) -> Iterator[ShardTask]:
    """Make the shards; yield each task that is done."""
    while tasks:
        suspects = [task for task in tasks if task.reading_path.exists()]
        for task in suspects:
            _make_alone(task)
            yield task
        tasks = [task for task in tasks if task not in suspects]
        if not num_workers:
            yield from _run_here(tasks)
            return
        try:
            yield from _run_in_workers(tasks, num_workers)
            return
        except BrokenProcessPool as error:
            tasks = [task for task in tasks if not task.entry_path.exists()]
            if not any(task.reading_path.exists() for task in tasks):
                raise DatasetError(
                    "a worker process died before it read a file: lower num_workers and run this again to "
                    "resume (in a script, the call must stand under `if __name__ == '__main__':`)"
                ) from error


def _make_alone(task: ShardTask) -> None:
    """Make a shard in a process of its own, and skip the source if it ends that one too."""
    name = printable(task.file)
    log.warning("a process died while it read %s: reading it alone", name)
    task.reading_path.unlink(missing_ok=True)
    # not by multiprocessing, which would run a script's own main module again
    result = subprocess.run(
        [sys.executable, "-c", MAKE_ALONE], input=pickle.dumps(task), cwd=REPOSITORY, stderr=subprocess.PIPE
    )
    if task.entry_path.exists():
        return
    if not task.reading_path.exists():
        last = (result.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise DatasetError(f"the process that was to read {name} alone ended before it could ({last})")
    how = f"signal {-result.returncode}" if result.returncode < 0 else f"exit status {result.returncode}"
    _write_entry(
        task, _skipped(f"ends the process that reads it ({how}): its decoder crashes, or memory is short")
    )
    task.reading_path.unlink()


def _run_here(tasks: list[ShardTask]) -> Iterator[ShardTask]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker: the rows must not depend on how threads split a sum
    try:
        for task in tasks:
            make_shard(task)
            yield task
    finally:
        torch.set_num_threads(threads)


def _run_in_workers(tasks: list[ShardTask], num_workers: int) -> Iterator[ShardTask]:
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads or a GPU may hang
    pool = ProcessPoolExecutor(num_workers, context, _start_worker)
    try:
        longest_first = sorted(tasks, key=lambda task: -task.seconds)  # or one long file is left to the end
        futures = {pool.submit(make_shard, task): task for task in longest_first}
        for future in as_completed(futures):
            future.result()
            yield futures[future]
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when kill -9 has ended its parent, which could not stop it."""
    multiprocessing.parent_process().join()
    os._exit(1)


def make_or_skip(task: ShardTask) -> None:
    """Make a shard, alone if a process has died over it; for retries, which do not know what was before."""
    torch.set_num_threads(1)
    if task.entry_path.exists():
        return
    if task.reading_path.exists():
        _make_alone(task)
    else:
        make_shard(task)


def make_shard(task: ShardTask) -> None:
    """Write one source's rows and its entry, or the entry that says why it was skipped."""
    with task.reading():
        try:
            entry = {"skipped": None, **task.write_rows()}
        except AudioError as error:
            task.rows_path.unlink(missing_ok=True)
            entry = _skipped(error.reason)
        _write_entry(task, entry)


def _skipped(reason: str) -> dict:
    return {"skipped": reason, "seconds": 0.0, "silent_clips": 0, "sha256": "", "clips": []}


def _write_entry(task: ShardTask, entry: dict) -> None:
    write_whole(task.entry_path, json.dumps(entry).encode())


def read_entry(task: ShardTask) -> dict:
    """Return what `make_shard` wrote about a source (`ShardTask.entry_path`)."""
    with disk_errors(task.entry_path, "read"):
        return json.loads(task.entry_path.read_text())


def write_batches(path: Path, batches: Iterable[tuple[list[float], np.ndarray, list]]) -> tuple[str, list]:
    """Write rows to `path`; return the sha256 of its content and the clips as the entry lists them.

    Args:
        batches: of offsets in s, rows (b, C, F, T), and gains [offset, scale] or None.
    """
    digest, clips = hashlib.sha256(), []

    def write(rows: BinaryIO) -> None:
        for offsets, values, gains in batches:
            content = values.tobytes()
            rows.write(content)
            digest.update(content)
            pairs = zip(offsets, gains, strict=True)
            clips.extend({"offset": offset, "gain": gain} for offset, gain in pairs)

    write_then_rename(path, write)
    return digest.hexdigest(), clips


def _encoded(config: SpectrogramConfig, clips: "_Clips") -> Iterator[tuple[list[float], np.ndarray, list]]:
    """Yield the offsets in s, the rows and the gains of a few clips at a time."""
    for batch in _batches(clips, BATCH):
        starts, samples = zip(*batch, strict=True)
        values, gains = _encode(config, torch.from_numpy(np.stack(samples)))
        if not np.isfinite(values).all():
            raise AudioError(
                clips.task.path, f"has no finite spectrogram after {starts[0] / config.sample_rate:.2f} s"
            )
        yield [start / config.sample_rate for start in starts], values, gains


def _named(task: AudioTask, items: Iterable) -> Iterator:
    """Yield the items; what goes wrong in making them is the source's fault, whatever its type."""
    try:
        yield from items
    except AudioError:
        raise
    except Exception as error:
        message = (str(error).splitlines() or [""])[0][:200]
        raise AudioError(task.path, f"cannot be read: {type(error).__name__}: {message}") from error


class _Clips:
    """The clips of one source as `(first sample, float32 (channels, clip_samples))`, without silent ones."""

    def __init__(self, task: AudioTask):
        self.task = task
        self.samples = 0  # read so far
        self.silent = 0  # clips left out so far

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        config = self.task.spectrogram
        pending, start = np.zeros((config.channels, 0), np.float32), 0  # ends at sample `self.samples`
        for block in read_blocks(self.task.path, config.sample_rate, mono=config.channels == 1):
            block = to_channels(torch.from_numpy(block), config.channels).numpy()
            pending = np.concatenate([pending, block], axis=1)
            self.samples += block.shape[1]
            while start + config.clip_samples <= self.samples:
                first = pending.shape[1] - (self.samples - start)
                samples = pending[:, first : first + config.clip_samples]
                if self._is_heard(samples):
                    yield start, samples
                start += self.task.stride
            pending = pending[:, pending.shape[1] - max(0, self.samples - start) :]
        if self.task.pad_short and 0 < self.samples < config.clip_samples and self._is_heard(pending):
            yield 0, np.pad(pending, ((0, 0), (0, config.clip_samples - self.samples)))

    def _is_heard(self, samples: np.ndarray) -> bool:
        """Return whether samples (channels, L) are loud enough for a clip; count them if they are not."""
        quiet = math.sqrt(np.mean(np.square(samples))) < 10 ** (self.task.silence_db / 20)
        self.silent += quiet
        return not quiet


def _batches(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


@lru_cache(maxsize=1)
def _spectrogram(config: SpectrogramConfig) -> Spectrogram:
    return Spectrogram(config)


@torch.no_grad()
def _encode(config: SpectrogramConfig, waveform: torch.Tensor) -> tuple[np.ndarray, list]:
    spectrogram = _spectrogram(config)
    if config.normalisation == "dataset":
        return spectrogram.features(waveform).numpy(), [None] * len(waveform)
    x0, gain = spectrogram.encode_with_gain(waveform)
    return x0.numpy().astype(np.float16), torch.stack(gain, dim=1).tolist()


def read_rows(path: Path, count: int, shape: tuple[int, ...], dtype: type) -> Iterator[torch.Tensor]:
    """Yield the `count` rows of a shard's file a few at a time, (b, *shape) of `dtype`."""
    with disk_errors(path, "read"), open(path, "rb") as rows:
        for start in range(0, count, BATCH):
            batch = np.empty((min(BATCH, count - start), *shape), dtype)
            if rows.readinto(batch.data) < batch.nbytes:
                raise DatasetError(f"{path} is cut short: delete its folder and build again")
            yield torch.from_numpy(batch)
