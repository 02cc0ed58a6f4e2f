"""Logging, seeds, noise, device and precision: what every script needs."""

import contextlib
import logging
import math
import operator
import os
import random
import sys
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

LIGHT_DEBUG = 15  # between DEBUG (10) and INFO (20): our details without the libraries' noise
logging.addLevelName(LIGHT_DEBUG, "LIGHT_DEBUG")

ROOT_LOGGER = "MA_DDPM"


def get_logger(name: str) -> logging.Logger:
    """Return a module's logger; all are children of `MA_DDPM`, so one level controls them."""
    return logging.getLogger(f"{ROOT_LOGGER}.{name}")


def set_log_level(level: int | str) -> None:
    """Show this repository's messages from `level` upwards on stdout; leave other libraries alone.

    `level` is a number or one of DEBUG, LIGHT_DEBUG, INFO, WARNING, ERROR.

    Raises:
        ValueError: the name is not a level.
    """
    logger = logging.getLogger(ROOT_LOGGER)
    if isinstance(level, str):
        require(("DEBUG", "LIGHT_DEBUG", "INFO", "WARNING", "ERROR"), log_level=level)
    logger.setLevel(level)
    if not logger.handlers:
        handler = _ConsoleHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False


class _ConsoleHandler(logging.Handler):
    """Write to the current stdout (a notebook may replace it), above a progress bar instead of into it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices) with one number."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - for libraries that still draw from it
    torch.manual_seed(seed)


def derive_seed(*parts: int) -> int:
    """Mix integers into one seed below 2**32, so that (seed, 7) and (seed, 8) give unrelated streams."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class SampleNoise:
    """Standard normal noise with one generator per sample of a batch.

    A sample's noise depends on its seed alone, not on its batch. Noise is drawn on the CPU by default
    (`draw_on`), so that a seed gives the same sample on every device.
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


def require(allowed: Iterable | str, **settings) -> None:
    """Raise a ValueError that names a setting, its value and what is allowed, unless all values are allowed.

    Args:
        allowed: names to choose from, or an interval such as "[0, 1)", where "inf" is no bound.
        settings: values by name.
    """
    fits, rule = _interval(allowed) if isinstance(allowed, str) else (set(allowed).__contains__, None)
    for name, value in settings.items():
        if not fits(value):
            rule = rule or f"choose one of {', '.join(map(str, allowed))}"
            sentence = f"must be {rule}" if isinstance(allowed, str) else f"is unknown; {rule}"
            raise ValueError(f"{name}={value!r:.80} {sentence}")  # a damaged file's may be endless


def _interval(text: str) -> tuple[Callable[[float], bool], str]:
    """Return the test for being within an interval such as "[0, 1)", and the interval in words."""
    low, high = (float(bound) for bound in text[1:-1].split(","))
    above = operator.ge if text[0] == "[" else operator.gt
    below = operator.le if text[-1] == "]" or math.isinf(high) else operator.lt
    if math.isinf(high):
        words = f"{low:g} or more" if text[0] == "[" else f"above {low:g}"
    else:
        words = f"within {text}"
    return lambda value: above(value, low) and below(value, high), words


def spread_indices(size: int, count: int) -> list[int]:
    """Return `count` indices, at most all, spread evenly over `size` items from the first to the last."""
    return torch.linspace(0, size - 1, min(count, size)).long().tolist()


def pick_device() -> torch.device:
    """Return the best device here: CUDA, then Apple's MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def resolve_precision(mixed_precision: str) -> str:
    """Resolve `auto` to what is fast here: bf16 where the hardware has it, else fp16 on CUDA, else fp32.

    On a GPU before Ampere (V100, T4, RTX 20) PyTorch only emulates bf16, slowly.
    """
    if mixed_precision != "auto":
        return mixed_precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "no"


def autocast(device: torch.device, precision: str):
    """Return a context in which networks compute in this precision: no, fp16 or bf16."""
    if precision == "no" or device.type not in ("cuda", "cpu"):
        return contextlib.nullcontext()
    return torch.autocast(device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def printable(name: str | os.PathLike) -> str:
    """Return a file's name as one line that every terminal can print.

    A name may hold newlines, other control characters, and bytes that are not UTF-8; they become escapes.
    """
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in os.fspath(name))
    return "".join(escaped)
