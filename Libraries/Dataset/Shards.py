"""One audio file -> one shard of a dataset: cut into clips, encoded, written whole or not at all.

A shard is a file of rows and a JSON entry, whose presence marks the shard as complete; so a killed build
keeps what it has made. Shards are made in this process or in several.
"""

import json
import math
import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from Libraries.Dataset.Manifest import DatasetError
from Libraries.Sound.Audio import AudioError, read_blocks
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Utils import write_then_rename

BATCH = 16  # clips encoded at a time: fixed, so that rows do not depend on the machine
WORTH_A_WORKER = 1200.0  # s of music; less is encoded before another process has started (about 4 s)


@dataclass(frozen=True)
class ShardTask:
    """All that a worker needs to make one shard."""

    path: Path
    file: str  # the same, relative to the audio folder
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


def make_shards(tasks: list[ShardTask], num_workers: int) -> None:
    """Make every missing shard, with a progress bar in seconds of music.

    Raises:
        DatasetError: a worker process died.
    """
    tasks = [task for task in tasks if not task.entry_path.exists()]
    seconds = sum(task.seconds for task in tasks)
    num_workers = min(num_workers, len(tasks), int(seconds / WORTH_A_WORKER))
    run = _run_in_workers(tasks, num_workers) if num_workers > 1 else _run_here(tasks)
    with tqdm(total=round(seconds), unit=" s of music", desc="Encoding", disable=not tasks) as bar:
        for task in run:
            bar.update(round(task.seconds))


def _run_here(tasks: list[ShardTask]) -> Iterator[ShardTask]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker: the rows must not depend on how threads split a sum
    try:
        for task in tasks:
            _make_shard(task)
            yield task
    finally:
        torch.set_num_threads(threads)


def _run_in_workers(tasks: list[ShardTask], num_workers: int) -> Iterator[ShardTask]:
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads or a GPU may hang
    pool = ProcessPoolExecutor(num_workers, context, _start_worker)
    try:
        longest_first = sorted(tasks, key=lambda task: -task.seconds)  # or one long file is left to the end
        futures = {pool.submit(_make_shard, task): task for task in longest_first}
        for future in as_completed(futures):
            future.result()
            yield futures[future]
    except BrokenProcessPool as error:
        raise DatasetError(
            "a worker process died, most likely for lack of memory: lower num_workers and run this again to "
            "resume (in a script, the call must stand under `if __name__ == '__main__':`)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when kill -9 has ended its parent, which could not stop it."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _make_shard(task: ShardTask) -> None:
    """Write one source's rows and its entry, or the entry that says why it was skipped."""
    try:
        entry = {"skipped": None, **_write_rows(task)}
    except AudioError as error:
        entry = {"skipped": error.reason, "seconds": 0.0, "silent_clips": 0, "clips": []}
    write_then_rename(task.entry_path, lambda path: path.write_text(json.dumps(entry)))


def _write_rows(task: ShardTask) -> dict:
    """Encode one source clip by clip; rows are float32, not normalised, where the dataset sets the gain."""
    config = task.spectrogram
    clips = _Clips(task)
    entries = []

    def write(path: Path) -> None:
        with open(path, "wb") as rows:
            for batch in _batches(clips, BATCH):
                waveform = torch.from_numpy(np.stack([samples for _, samples in batch]))[:, None]
                values, gains = _encode(config, waveform)
                rows.write(values.tobytes())
                entries.extend(
                    {"offset": start / config.sample_rate, "gain": gain}
                    for (start, _), gain in zip(batch, gains, strict=True)
                )

    write_then_rename(task.rows_path, write)
    seconds = clips.samples / config.sample_rate
    if not entries and clips.silent:
        raise AudioError(task.path, f"is silent: no clip is louder than {task.silence_db:g} dB")
    if not entries:
        raise AudioError(task.path, f"is shorter than one clip: {seconds:.2f} of {config.clip_seconds:g} s")
    return {"seconds": seconds, "silent_clips": clips.silent, "clips": entries}


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
    with open(task.rows_path, "rb") as rows:
        for start in range(0, count, BATCH):
            size = min(BATCH, count - start)
            yield torch.from_numpy(np.fromfile(rows, dtype, size * math.prod(shape)).reshape(size, *shape))
