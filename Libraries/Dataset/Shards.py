"""One audio file -> one shard of a dataset: cut into clips, encoded, written whole or not at all.

A shard is a file of rows and a JSON entry, whose presence marks the shard as complete; so a killed build
keeps what it has made. Shards are made in this process or in several.

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
from Libraries.Disk import disk_errors, write_then_rename, write_whole
from Libraries.Sound.Audio import AudioError, read_blocks
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Utils import get_logger, printable

log = get_logger("Shards")

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
    """All that a worker needs to make one shard."""

    path: Path
    file: str  # the same, relative to the audio folder
    fingerprint: str  # of its content when the build began
    shard: Path  # without suffix
    seconds: float  # from the header, for the progress bar alone
    spectrogram: SpectrogramConfig
    stride: int  # samples
    silence_db: float

    @property
    def entry_path(self) -> Path:
        """JSON that marks the shard as complete: `skipped`, `seconds`, `silent_clips`, `clips`."""
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


def make_shards(tasks: list[ShardTask], num_workers: int) -> None:
    """Make every missing shard, with a progress bar in seconds of music.

    Args:
        num_workers: processes that encode; 0: this one, which a file that crashes its decoder would end.

    Raises:
        DatasetError: a worker process died that read no file.
    """
    tasks = [task for task in tasks if not task.entry_path.exists()]
    seconds = sum(task.seconds for task in tasks)
    num_workers = min(num_workers, len(tasks), int(seconds / WORTH_A_WORKER))
    with tqdm(total=round(seconds), unit=" s of music", desc="Encoding", disable=not tasks) as bar:
        for task in _run(tasks, num_workers):
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


def make_shard(task: ShardTask) -> None:
    """Write one source's rows and its entry, or the entry that says why it was skipped."""
    with task.reading():
        try:
            entry = {"skipped": None, **_write_rows(task)}
            if fingerprint(task.path) != task.fingerprint:
                raise AudioError(task.path, "has changed while it was read: build again when it is finished")
        except AudioError as error:
            with disk_errors(task.path.parent, "read"):  # if the folder is gone, it is not the file's fault
                task.path.parent.stat()
            task.rows_path.unlink(missing_ok=True)
            entry = _skipped(error.reason)
        _write_entry(task, entry)


def _skipped(reason: str) -> dict:
    return {"skipped": reason, "seconds": 0.0, "silent_clips": 0, "clips": []}


def _write_entry(task: ShardTask, entry: dict) -> None:
    write_whole(task.entry_path, json.dumps(entry).encode())


def read_entry(task: ShardTask) -> dict:
    """Return what `make_shard` wrote about a source: `skipped`, `seconds`, `silent_clips`, `clips`."""
    with disk_errors(task.entry_path, "read"):
        return json.loads(task.entry_path.read_text())


def _write_rows(task: ShardTask) -> dict:
    """Encode one source clip by clip; rows are float32, not normalised, where the dataset sets the gain."""
    config = task.spectrogram
    clips = _Clips(task)
    entries = []

    def write(rows: BinaryIO) -> None:
        for starts, values, gains in _named(task, _encoded(config, clips)):
            rows.write(values.tobytes())
            entries.extend(
                {"offset": start / config.sample_rate, "gain": gain}
                for start, gain in zip(starts, gains, strict=True)
            )

    write_then_rename(task.rows_path, write)
    seconds = clips.samples / config.sample_rate
    if not entries and clips.silent:
        raise AudioError(task.path, f"is silent: no clip is louder than {task.silence_db:g} dB")
    if not entries:
        raise AudioError(task.path, f"is shorter than one clip: {seconds:.2f} of {config.clip_seconds:g} s")
    return {"seconds": seconds, "silent_clips": clips.silent, "clips": entries}


def _encoded(config: SpectrogramConfig, clips: "_Clips") -> Iterator[tuple[list[int], np.ndarray, list]]:
    """Yield the first samples, the rows and the gains of a few clips at a time."""
    for batch in _batches(clips, BATCH):
        starts, samples = zip(*batch, strict=True)
        values, gains = _encode(config, torch.from_numpy(np.stack(samples))[:, None])
        if not np.isfinite(values).all():
            raise AudioError(
                clips.task.path, f"has no finite spectrogram after {starts[0] / config.sample_rate:.2f} s"
            )
        yield starts, values, gains


def _named(task: ShardTask, items: Iterable) -> Iterator:
    """Yield the items; what goes wrong in making them is the source's fault, whatever its type."""
    try:
        yield from items
    except AudioError:
        raise
    except Exception as error:
        message = (str(error).splitlines() or [""])[0][:200]
        raise AudioError(task.path, f"cannot be read: {type(error).__name__}: {message}") from error


class _Clips:
    """The clips of one source as `(first sample, float32 (clip_samples,))`, silent ones left out."""

    def __init__(self, task: ShardTask):
        self.task = task
        self.samples = 0  # read so far
        self.silent = 0  # clips left out so far

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        config = self.task.spectrogram
        quiet = 10 ** (self.task.silence_db / 20)
        pending, start = np.zeros(0, np.float32), 0  # `pending` ends at sample `self.samples`
        for block in read_blocks(self.task.path, config.sample_rate, mono=True):
            pending = np.concatenate([pending, block[0]])
            self.samples += block.shape[1]
            while start + config.clip_samples <= self.samples:
                first = len(pending) - (self.samples - start)
                samples = pending[first : first + config.clip_samples]
                if math.sqrt(np.mean(np.square(samples))) < quiet:
                    self.silent += 1
                else:
                    yield start, samples
                start += self.task.stride
            pending = pending[len(pending) - max(0, self.samples - start) :]


def _batches(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


@lru_cache(maxsize=1)
def _spectrogram(config: SpectrogramConfig) -> Spectrogram:
    return Spectrogram(config)


def row_dtype(config: SpectrogramConfig) -> type:
    """Return the type of a shard's rows: of features that await the dataset's gain, or of x0."""
    return np.float32 if config.normalisation == "dataset" else np.float16


@torch.no_grad()
def _encode(config: SpectrogramConfig, waveform: torch.Tensor) -> tuple[np.ndarray, list]:
    spectrogram = _spectrogram(config)
    if config.normalisation == "dataset":
        return spectrogram.features(waveform).numpy(), [None] * len(waveform)
    x0, gain = spectrogram.encode_with_gain(waveform)
    return x0.numpy().astype(np.float16), torch.stack(gain, dim=1).tolist()


def read_rows(task: ShardTask, count: int) -> Iterator[torch.Tensor]:
    """Yield the `count` rows of a shard a few at a time, `(b, C, F, T)` of `row_dtype`."""
    shape, dtype = task.spectrogram.shape, row_dtype(task.spectrogram)
    with disk_errors(task.rows_path, "read"), open(task.rows_path, "rb") as rows:
        for start in range(0, count, BATCH):
            batch = np.empty((min(BATCH, count - start), *shape), dtype)
            if rows.readinto(batch.data) < batch.nbytes:
                raise DatasetError(f"{task.rows_path} is cut short: delete its folder and build again")
            yield torch.from_numpy(batch)
