"""How fast a network trains: BASE and ORIGIN against diffusers' UNet2DModel, all at 1x224x416.

    python benchmarks/training.py [--device cuda] [--batch-size 32] [--precision bf16]

A step is forward, mean squared error, backward and AdamW on random data. The models take their steps in
turns; the table shows medians. Peak memory is that of a process which takes two steps of one model: the
device's allocations on CUDA, else all resident memory of the process, Python and torch included. Where
others compute on the same cores, OMP_NUM_THREADS=1 keeps the threads from waiting for each other.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import torch
from common import (
    PEER,
    PRECISION_NAMES,
    SHAPE,
    Peer,
    autocast,
    machine_line,
    median_in_turns,
    parse_with_device,
    place,
    print_table,
    size_of,
)
from torch import nn

from Conf import BASE, ORIGIN
from Libraries.Pipeline import build_network

BUILDERS = {s.preset: partial(build_network, s) for s in (BASE, ORIGIN)} | {PEER: Peer}


def main() -> None:
    """Parse the arguments, time all models, print the table; or as a child measure one model's memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timed-steps", type=int, default=3, help="of each model, after one to warm up")
    parser.add_argument("--measure-memory", choices=tuple(BUILDERS), help=argparse.SUPPRESS)
    args = parse_with_device(parser, batch_sizes=(2, 32))
    if args.measure_memory:
        print(json.dumps(peak_memory(args.measure_memory, args)))
        return
    print(machine_line(args.device))
    precision = PRECISION_NAMES.get(args.precision, args.precision)
    print(f"forward + backward + AdamW, batch {args.batch_size}, {precision}\n")
    memory = {name: memory_of_fresh_process(name, args) for name in BUILDERS}
    steps = {name: training_step(build(), args) for name, build in BUILDERS.items()}
    print_rows(median_in_turns(steps, args.timed_steps, args.device), memory, args.batch_size)


def training_step(network: nn.Module, args: argparse.Namespace) -> Callable[[], None]:
    """Return a call that takes one optimiser step on random data."""
    network = place(network, args.device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    x, target = torch.randn(2, args.batch_size, *SHAPE, device=args.device)
    t = torch.arange(args.batch_size, device=args.device)

    def step() -> None:
        with autocast(args.device, args.precision):
            output = network(x, t)
        (output.float() - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def memory_of_fresh_process(name: str, args: argparse.Namespace) -> float:
    """Return what `peak_memory` says in a process of its own."""
    options = {"--device": args.device, "--batch-size": args.batch_size, "--precision": args.precision}
    arguments = [str(part) for pair in options.items() for part in pair]
    command = [sys.executable, __file__, "--measure-memory", name, *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"measuring the memory of {name} failed:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def peak_memory(name: str, args: argparse.Namespace) -> float:
    """Take two steps (the second with the optimiser's state in place) and return the peak in GB."""
    step = training_step(BUILDERS[name](), args)
    for _ in range(2):
        step()
    if args.device.type == "cuda":
        return torch.cuda.max_memory_allocated(args.device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def print_rows(seconds: dict[str, float], memory: dict[str, float], batch_size: int) -> None:
    """Print a line a model: rate, how often the peer's, and memory."""
    lines = []
    for name, build in BUILDERS.items():
        parameters, gflop = size_of(build)
        rate, ratio = batch_size / seconds[name], seconds[PEER] / seconds[name]
        line = [f"{parameters:.1f}", f"{gflop:.1f}", f"{seconds[name]:.3g}", f"{rate:.3g}", f"{ratio:.2f}"]
        lines.append([name, *line, f"{memory[name]:.2f}"])
    print_table(["model", "M param.", "GFLOP forward", "s/step", "samples/s", "x peer", "peak GB"], lines)


if __name__ == "__main__":
    main()
