"""Batches of any dataset: endless for training, each a function of (seed, step), or finite."""

import os
import signal
import threading
from collections.abc import Iterator
from itertools import count

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from Libraries.Dataset.Permutation import permuted
from Libraries.Utils import get_logger

log = get_logger("Batches")

STOPPING = {signal.SIGINT, signal.SIGTERM}


class StepSampler(Sampler):
    """An endless batch sampler whose batches are a function of (seed, step) alone.

    The epochs form one stream, each a permutation by (seed, epoch). Step s takes the next
    `batch_size * world_size` positions, whether or not an epoch ends there. Process `rank` takes its slice,
    so P processes with batches of B together see what one process sees with batches of P * B.

    Yields lists of (index, seed); the seed, of this position in the stream, decides the augmentation.

    Args:
        size: clips in the dataset; it may be smaller than a batch.
        batch_size: clips per process and step.
        start_step: the first step to yield, counted in batches.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, start_step: int = 0, rank: int = 0, world_size: int = 1
    ):
        if size < 1 or batch_size < 1 or seed < 0 or start_step < 0:
            raise ValueError(
                f"size={size} and batch_size={batch_size} must be at least 1, "
                f"seed={seed} and start_step={start_step} at least 0"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} must be at least 0 and below world_size={world_size}")
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.start_step, self.rank, self.world_size = start_step, rank, world_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return (self.batch(step) for step in count(self.start_step))

    def batch(self, step: int) -> list[tuple[int, int]]:
        """Return the (index, seed) pairs of one step."""
        first = (step * self.world_size + self.rank) * self.batch_size
        positions = range(first, first + self.batch_size)
        return list(zip(self._indices(np.array(positions)), map(self._item_seed, positions), strict=True))

    def _indices(self, positions: np.ndarray) -> list[int]:
        epochs, within = np.divmod(positions, self.size)
        found = np.empty_like(positions)
        for epoch in np.unique(epochs):
            found[epochs == epoch] = permuted(within[epochs == epoch], self.size, (self.seed, int(epoch)))
        return found.tolist()

    def _item_seed(self, position: int) -> int:
        return int(np.random.SeedSequence((self.seed, position)).generate_state(1, np.uint64)[0])


def loaders_of(
    train: TorchDataset,
    validation: TorchDataset,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    device: torch.device | str | None = None,
) -> tuple[DataLoader, DataLoader]:
    """Return the loaders of `make_loaders` for any two datasets with `SpectrogramDataset`'s interface.

    That is `num_bytes`, `to(device)`, and `__getitems__` of (index, seed) pairs or indices.
    """
    sampler = StepSampler(len(train), batch_size, seed, start_step, rank, world_size)
    resident = device is not None and _fits(train.num_bytes + validation.num_bytes, torch.device(device))
    if resident:
        train, validation = train.to(device), validation.to(device)
    common = {
        "collate_fn": _unchanged,
        "generator": torch.Generator().manual_seed(seed),  # else each epoch draws from the global one
        "pin_memory": torch.cuda.is_available() and not resident,
    }
    workers = 0 if resident else num_workers
    train_loader = DataLoader(
        train, batch_sampler=sampler, num_workers=workers, worker_init_fn=_heed_the_parent_alone, **common
    )
    return train_loader, DataLoader(validation, batch_size=batch_size, **common)


def _heed_the_parent_alone(worker: int) -> None:
    """Ignore SIGINT and SIGTERM in a loader worker unless its parent sends them.

    A scheduler or Ctrl-C signals all processes of a training at once; without its workers it could not finish
    the step and save.
    """
    if not hasattr(signal, "sigwaitinfo"):  # not on Linux: no telling who sends, so leave the parent a way
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    threading.Thread(target=_end_by_the_parent, daemon=True).start()


def _end_by_the_parent() -> None:
    while signal.sigwaitinfo(STOPPING).si_pid != os.getppid():
        pass
    os._exit(0)


def _unchanged(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch  # `__getitems__` has collated it


def _fits(num_bytes: int, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    if num_bytes > free / 2:
        log.warning(
            "%.1f GB of data are read from disk: %s has %.1f GB free", num_bytes / 1e9, device, free / 1e9
        )
    return num_bytes <= free / 2
