"""Time calls in turns, and make a training step to time."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from tqdm.auto import tqdm

from Libraries.Training.Loop import Loss
from Libraries.Training.TrainConfig import TrainConfig
from Libraries.Utils import autocast, pick_device, resolve_precision


def median_in_turns(
    calls: dict[str, Callable[[], object]], turns: int, device: torch.device, warm_ups: int = 1
) -> dict[str, float]:
    """Return the median seconds of each call.

    All are called `warm_ups` times untimed and then in turns, A B C A B C, so that a drifting clock or other
    work on the machine affects all alike.
    """
    seconds = {name: [] for name in calls}
    for turn in tqdm(range(turns + warm_ups), desc="timing", unit="turn", leave=False):
        for name, call in calls.items():
            elapsed = time_call(call, device)
            if turn >= warm_ups:
                seconds[name].append(elapsed)
    return {name: statistics.median(values) for name, values in seconds.items()}


def time_call(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call, including all its work on the device."""
    synchronise(device)
    start = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    """Wait for a device that computes asynchronously."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def training_step(
    network: nn.Module, loss_fn: Loss, train: TrainConfig, shape: tuple[int, int, int]
) -> Callable[[], None]:
    """Return a function that takes one optimiser step with `train`, on random x0 (B, *shape) of label 0."""
    device, B = pick_device(), train.batch_size
    network, precision = network.to(device).train(), resolve_precision(train.mixed_precision)
    optimizer = torch.optim.AdamW(network.parameters(), lr=train.learning_rate)
    batch = torch.randn(B, *shape, device=device), torch.zeros(B, dtype=torch.int64, device=device)

    def step() -> None:
        for _ in range(train.grad_accumulation):
            with autocast(device, precision):
                loss = loss_fn(network, batch, torch.arange(B)).mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
