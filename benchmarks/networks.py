"""What every named network costs on one 1x224x416 tensor: the table of Libraries/README.md.

    python benchmarks/networks.py [--only unet_v0 se_unet] [--timed-passes 3] [--device cuda]

Seconds are the median of a forward pass without gradients, the networks in turn. Peak memory is that of a
separate process that takes two training steps: the device's allocations on CUDA, else all resident memory
of the process, Python and torch included. `BASE` and `ORIGIN` are the networks of these presets.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial

import torch
from common import (
    PRECISION_NAMES,
    SHAPE,
    machine_line,
    memory_of_fresh_process,
    parse_with_device,
    peak_memory,
    place,
    print_table,
    size_of,
)
from torch import nn

from Conf import BASE, ORIGIN
from Libraries.Networks.Catalogue import JOURNAL, journal_network, make_network
from Libraries.Runs.DiffusionTraining import diffusion_recipe
from Libraries.Training.Timing import median_in_turns
from Libraries.Utils import autocast

PRESETS = {settings.preset: diffusion_recipe(settings).network for settings in (BASE, ORIGIN)}
BUILDERS = PRESETS | {name: partial(make_network, journal_network(name, 0), SHAPE[0]) for name in JOURNAL}


def main() -> None:
    """Parse the arguments, measure, print the table; or as a child process measure one network's memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=tuple(BUILDERS), default=tuple(BUILDERS))
    parser.add_argument("--timed-passes", type=int, default=3, help="of each network, after one to warm up")
    parser.add_argument("--measure-memory", choices=tuple(BUILDERS), help=argparse.SUPPRESS)
    args = parse_with_device(parser, batch_sizes=(1, 1))
    if args.measure_memory:
        print(json.dumps(peak_memory(BUILDERS[args.measure_memory](), args)))
        return
    precision = PRECISION_NAMES.get(args.precision, args.precision)
    print(f"{machine_line(args.device)}; batch {args.batch_size}, {precision}\n")
    # first, while this process is small: the peak of a child starts at the size of its parent
    memory = {name: memory_of_fresh_process(__file__, name, args) for name in args.only}
    passes = {name: forward_pass(BUILDERS[name](), args) for name in args.only}
    print_rows(median_in_turns(passes, args.timed_passes, args.device), memory)


def forward_pass(network: nn.Module, args: argparse.Namespace) -> Callable[[], None]:
    """Return a call that computes the output for random data, without gradients."""
    network = place(network, args.device).eval()
    x = torch.randn(args.batch_size, *SHAPE, device=args.device)
    t = torch.arange(args.batch_size, device=args.device)

    def call() -> None:
        with torch.inference_mode(), autocast(args.device, args.precision):
            network(x, t)

    return call


def print_rows(seconds: dict[str, float], memory: dict[str, float]) -> None:
    """Print one row per network, ending with its entry in the journal."""
    lines = []
    for name in seconds:
        parameters, gflop = size_of(BUILDERS[name])
        entry = JOURNAL[name].entry if name in JOURNAL else "a preset"
        figures = [f"{parameters:.3g}", f"{gflop:.0f}", f"{seconds[name]:.3g}", f"{memory[name]:.2f}"]
        lines.append([name, *figures, entry])
    print_table(["network", "M param.", "GFLOP", "s/pass", "peak GB, training", "journal"], lines)


if __name__ == "__main__":
    main()
