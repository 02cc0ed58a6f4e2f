"""What the benchmarks share: the peer network, precision, time and memory, machine and table.

Importing this module puts the repository and MainScripts on the path, so import it before `Conf` and
`Libraries`.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "MainScripts")]

from Libraries.Dataset.SpectrogramDataset import build_dataset  # noqa: E402
from Libraries.Networks.Catalogue import count_flops, count_parameters  # noqa: E402
from Libraries.Runs.Budget import seconds_per_step  # noqa: E402
from Libraries.Runs.Preparation import render_demo  # noqa: E402
from Libraries.Runs.Recipe import Recipe, train  # noqa: E402
from Libraries.Runs.Run import find_run  # noqa: E402
from Libraries.Runs.Settings import Settings, changed  # noqa: E402
from Libraries.Utils import (  # noqa: E402
    autocast,
    pick_device,
    resolve_precision,
)

SHAPE = (1, 224, 416)  # channels, rows, frames of every input: what BASE, ORIGIN and the peer all take
PEER = "UNet2DModel"
PRECISION_NAMES = {"no": "fp32"}  # Accelerate's name -> the name in tables


class Peer(nn.Module):
    """The U-Net of diffusers' own training tutorial at this size, called `(x, t)` like ours.

    It convolves at full resolution, (B, 1, 224, 416) -> the same, with attention at the fifth of six levels.
    """

    def __init__(self):
        super().__init__()
        from diffusers import UNet2DModel  # takes seconds to import, and only the benchmarks need it

        self.unet = UNet2DModel(
            sample_size=SHAPE[1:],
            in_channels=SHAPE[0],
            out_channels=SHAPE[0],
            layers_per_block=2,
            block_out_channels=(64, 64, 128, 128, 192, 192),
            down_block_types=(*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.unet(x, t, return_dict=False)[0]


def make_dataset(settings: Settings) -> None:
    """Render the demo corpus of a preset and build its dataset if that is missing."""
    if (settings.dataset_dir / "manifest.json").exists():
        return
    render_demo(settings)
    print(
        build_dataset(settings.demo_music_dir, settings.dataset_dir, settings.spectrogram, settings.dataset)
    )


def train_or_find(
    make_recipe: Callable[[Settings], Recipe], settings: Settings, part: str, minutes: float
) -> Path:
    """Return this preset's run of a recipe: a finished run, a resumed run or a new one.

    A new run gets as many steps as fit into the minutes, so that the learning-rate schedule ends with them.

    Args:
        part: the settings of this training, such as "vae.train".
    """
    recipe = make_recipe(settings)
    known = find_run(
        [recipe.parent], "conf.json", lambda run: run.conf and run.name.partition("-")[2] == recipe.name
    )
    if known:  # its number of steps was set when it began; a finished run trains no more
        return train(make_recipe(changed(settings, {part: known.config(part)})), known.folder)
    steps = max(10, int(minutes * 60 / seconds_per_step(recipe)))
    tenth = max(1, steps // 10)
    often = {"validate_every": tenth, "save_every": tenth, "snapshot_every": tenth, "preview_every": steps}
    config = replace(recipe.train, num_steps=steps, **often)
    return train(make_recipe(changed(settings, {part: config})))


def size_of(build: Callable[[], nn.Module]) -> tuple[float, float]:
    """Return millions of parameters and GFLOP per pass over one clip, without computing anything."""
    with torch.device("meta"):
        network, x, t = build().eval(), torch.empty(1, *SHAPE), torch.zeros(1, dtype=torch.int64)
        return count_parameters(network) / 1e6, count_flops(network, x, t) / 1e9


def place(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to the device, on CUDA in the faster memory layout."""
    network = network.to(device)
    return network.to(memory_format=torch.channels_last) if device.type == "cuda" else network


def peer_step(network: nn.Module, args: argparse.Namespace) -> Callable[[], None]:
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


def memory_of_fresh_process(script: str, name: str, args: argparse.Namespace) -> float:
    """Return what `script --measure-memory name` prints: the peak of a process that does nothing else."""
    options = {"--device": args.device, "--batch-size": args.batch_size, "--precision": args.precision}
    arguments = [str(part) for pair in options.items() for part in pair]
    command = [sys.executable, script, "--measure-memory", name, *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"measuring the memory of {name} failed:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def peak_memory(network: nn.Module, args: argparse.Namespace) -> float:
    """Take two steps (the second with the optimiser's state in place) and return the peak in GB."""
    step = peer_step(network, args)
    for _ in range(2):
        step()
    return peak_gigabytes(args.device)


def peak_gigabytes(device: torch.device) -> float:
    """Return the peak memory of this process in GB: of its tensors on a GPU, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def machine_line(device: torch.device) -> str:
    """Return the machine that the figures are measured on, as text."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
        if hasattr(os, "getloadavg"):
            name += f", load {os.getloadavg()[0]:.1f} at the start"
    return f"{name}; torch {torch.__version__}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")


def parse_with_device(parser: argparse.ArgumentParser, batch_sizes: tuple[int, int]) -> argparse.Namespace:
    """Add and parse the common options; `batch_sizes` are the defaults on a CPU and on other devices."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", type=torch.device, default=pick_device(), help="cpu, cuda, ...")
    parser.add_argument("--batch-size", type=int, help=f"clips (default {batch_sizes[0]} on a CPU)")
    parser.add_argument(
        "--precision", choices=("no", "bf16", "auto"), help="of all models (default: no on a CPU, else auto)"
    )
    args = parser.parse_args()
    on_cpu = args.device.type == "cpu"
    args.batch_size = args.batch_size or batch_sizes[0 if on_cpu else 1]
    args.precision = resolve_precision(args.precision or ("no" if on_cpu else "auto"))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as in training
    torch.backends.cudnn.benchmark = True
    return args
