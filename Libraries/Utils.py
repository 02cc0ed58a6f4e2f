"""Logging, seeds, the device and run folders: what every script needs before it starts."""

import contextlib
import logging
import os
import random
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

LIGHT_DEBUG = 15  # between DEBUG (10) and INFO (20): our details without the libraries' flood
logging.addLevelName(LIGHT_DEBUG, "LIGHT_DEBUG")

ROOT_LOGGER = "MA_DDPM"
_RUN_NAME = re.compile(r"^(\d{5})-")


def get_logger(name: str) -> logging.Logger:
    """Return the logger of one module; all of them hang below `MA_DDPM`, so one level rules them."""
    return logging.getLogger(f"{ROOT_LOGGER}.{name}")


def set_log_level(level: int | str) -> None:
    """Show this repository's messages from `level` upwards on stdout; other libraries stay as they are.

    `level` is a number or one of DEBUG, LIGHT_DEBUG, INFO, WARNING, ERROR.

    Raises:
        ValueError: the name is not a level.
    """
    logger = logging.getLogger(ROOT_LOGGER)
    known = ("DEBUG", "LIGHT_DEBUG", "INFO", "WARNING", "ERROR")
    if isinstance(level, str) and level not in known:
        raise ValueError(f"log level {level!r} is unknown; choose one of {', '.join(known)}")
    logger.setLevel(level)
    if not logger.handlers:
        handler = _ConsoleHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False


class _ConsoleHandler(logging.Handler):
    """Write to today's stdout (a notebook's may change), above a progress bar instead of into it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices) with one number."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - for libraries that still draw from it
    torch.manual_seed(seed)


def derive_seed(*parts: int) -> int:
    """Mix integers into one seed below 2**32, so that neighbours (seed, 7) and (seed, 8) share nothing."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class SampleNoise:
    """Standard normal noise with a generator of its own for every sample of a batch.

    A sample's noise depends on its seed alone, hence not on the batch it stands in. It is drawn on
    the CPU unless told otherwise, so that a seed means the same sample on every device.
    """

    def __init__(self, seeds: Iterable[int], device="cpu", draw_on="cpu", dtype: torch.dtype = torch.float32):
        self.generators = [torch.Generator(draw_on).manual_seed(int(seed)) for seed in seeds]
        self.device, self.draw_on, self.dtype = device, draw_on, dtype

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Return (B, *shape), the next draw of every sample."""
        noise = torch.empty(len(self.generators), *shape, dtype=self.dtype, device=self.draw_on)
        for row, generator in zip(noise, self.generators, strict=True):
            row.normal_(generator=generator)
        return noise.to(self.device)


def spread_indices(size: int, count: int) -> list[int]:
    """Return `count` indices, at most all, spread evenly over `size` items from the first to the last."""
    return torch.linspace(0, size - 1, min(count, size)).long().tolist()


def pick_device() -> torch.device:
    """Return the best device here: CUDA, then Apple's MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def autocast(device: torch.device, precision: str):
    """Return a context in which networks compute in this precision: no, fp16 or bf16."""
    if precision == "no" or device.type not in ("cuda", "cpu"):
        return contextlib.nullcontext()
    return torch.autocast(device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def new_run_dir(parent: Path, name: str) -> Path:
    """Make and return `parent/00007-name` with the next free number; an existing run is never reused.

    Raises:
        ValueError: `name` has characters other than letters, digits, '.', '_' and '-'.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"run name {name!r} must be letters, digits, '.', '_' or '-'")
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        number = 1 + max((_run_number(run) for run in parent.iterdir()), default=-1)
        run_dir = parent / f"{number:05d}-{name}"
        try:
            run_dir.mkdir()
        except FileExistsError:  # another process took this number in between
            continue
        return run_dir


def latest_run(parent: Path, containing: str = "*.pth") -> Path:
    """Return the newest run folder in `parent` that holds a file like `containing`.

    Raises:
        FileNotFoundError: there is none; the sentence says where it looked.
    """
    runs = [run for run in parent.iterdir() if _run_number(run) >= 0] if parent.is_dir() else []
    for run in sorted(runs, key=_run_number, reverse=True):
        if any(run.glob(containing)):
            return run
    raise FileNotFoundError(f"no run with {containing} in {parent}: train a model first")


def write_then_rename(path: Path, write) -> None:
    """Call `write(temporary_path)` beside `path`, then rename, so that `path` is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _run_number(run: Path) -> int:
    match = _RUN_NAME.match(run.name)
    return int(match.group(1)) if match else -1
