"""How fast a network trains: BASE and ORIGIN against diffusers' UNet2DModel, all at 1x224x416.

    python benchmarks/training.py [--device cuda] [--batch-size 32] [--precision bf16]

A step is forward, mean squared error, backward and AdamW on random data. The models take steps in turn; the
table shows medians. Peak memory is that of a process that takes two steps of one model: the device's
allocations on CUDA, else all resident memory of the process, Python and torch included. If other processes
use the same cores, OMP_NUM_THREADS=1 keeps the threads from waiting for each other.
"""

import argparse
import json

from common import (
    PEER,
    PRECISION_NAMES,
    Peer,
    machine_line,
    memory_of_fresh_process,
    parse_with_device,
    peak_memory,
    peer_step,
    print_table,
    size_of,
)

from Conf import BASE, ORIGIN
from Libraries.Runs.DiffusionTraining import diffusion_recipe
from Libraries.Training.Timing import median_in_turns

BUILDERS = {s.preset: diffusion_recipe(s).network for s in (BASE, ORIGIN)} | {PEER: Peer}


def main() -> None:
    """Parse the arguments, time all models, print the table; or as a child measure one model's memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timed-steps", type=int, default=3, help="of each model, after one to warm up")
    parser.add_argument("--measure-memory", choices=tuple(BUILDERS), help=argparse.SUPPRESS)
    args = parse_with_device(parser, batch_sizes=(2, 32))
    if args.measure_memory:
        print(json.dumps(peak_memory(BUILDERS[args.measure_memory](), args)))
        return
    print(machine_line(args.device))
    precision = PRECISION_NAMES.get(args.precision, args.precision)
    print(f"forward + backward + AdamW, batch {args.batch_size}, {precision}\n")
    memory = {name: memory_of_fresh_process(__file__, name, args) for name in BUILDERS}
    steps = {name: peer_step(build(), args) for name, build in BUILDERS.items()}
    print_rows(median_in_turns(steps, args.timed_steps, args.device), memory, args.batch_size)


def print_rows(seconds: dict[str, float], memory: dict[str, float], batch_size: int) -> None:
    """Print one row per model: rate, rate relative to the peer's, and memory."""
    lines = []
    for name, build in BUILDERS.items():
        parameters, gflop = size_of(build)
        rate, ratio = batch_size / seconds[name], seconds[PEER] / seconds[name]
        line = [f"{parameters:.1f}", f"{gflop:.1f}", f"{seconds[name]:.3g}", f"{rate:.3g}", f"{ratio:.2f}"]
        lines.append([name, *line, f"{memory[name]:.2f}"])
    print_table(["model", "M param.", "GFLOP forward", "s/step", "samples/s", "x peer", "peak GB"], lines)


if __name__ == "__main__":
    main()
