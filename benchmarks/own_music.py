"""Go the whole way with other people's music, and say where the music is lost: the demo's second row.

    python benchmarks/own_music.py FOLDER [FOLDER ...] [--root folder] [--seeds 0] [--clips 128]

For every folder of music, a dataset, an autoencoder and a diffusion are made with the settings of the preset
CPU, as by `ma-ddpm train`, and measured against the recordings of the test split: real clips through the
spectrogram, through the autoencoder as well, and generated clips. At the end, all folders and seeds in one
table. Each folder has its own place below --root; a second call keeps what is finished.

The demo itself is such a folder: `Data/demo_music-CPU` of a checkout in which `make demo` has run.
"""

import argparse
import json
import re
import time
from pathlib import Path

import torch
from common import machine_line, print_table

from Conf import CPU
from Libraries.Dataset import SpectrogramDataset
from Libraries.Evaluation import evaluate
from Libraries.Measures import number
from Libraries.Runs import (
    DiffusionRun,
    changed,
    ensure_dataset,
    prepare_space,
    train_diffusion,
)
from Libraries.Runs.Run import find_run
from Libraries.Runs.Settings import Settings
from Libraries.Training import save_json

KERNEL, METRICS = "kernel distance", "metrics.json"
HEADER = [
    "music, seed", "kernel distance", "floor", "precision, recall", "note length, s (real)",
    "steadiness, cents (real)", "spectrogram", "autoencoder", "generated", "floor",
]  # fmt: skip


def settings_of(music: Path, root: Path, seed: int, clips: int) -> Settings:
    """Return the preset's settings for one folder of music and one seed of the diffusion."""
    name = re.sub(r"[^\w.-]", "_", music.resolve().name)
    changes = {
        "root": root / name,
        "preset": f"CPU-{seed}",
        "music_dir": music.resolve(),
        "train.seed": seed,
        "evaluation.num_samples": clips,
    }
    return changed(CPU, changes)


def whole_way(settings: Settings) -> dict:
    """Make what is missing, and write what the diffusion is worth; return its figures."""
    start = time.perf_counter()
    if (report := ensure_dataset(settings)) is not None:
        print(report)
    prepare_space(settings)
    parent, ending = settings.models_dir / "diffusion", f"-{settings.preset}"
    run = find_run([parent], f"ema-{settings.train.num_steps:08d}.pth", lambda run: run.name.endswith(ending))
    run_dir = run.folder if run else train_diffusion(settings)
    minutes = (time.perf_counter() - start) / 60
    model = DiffusionRun.load(run_dir)
    splits = [SpectrogramDataset(settings.dataset_dir, split) for split in ("train", "test")]
    folder = model.run.results_dir / "own_music"
    if not (folder / METRICS).exists():
        save_json(folder / METRICS, evaluate(model, *splits, settings, folder))
    sizes = ", ".join(
        f"{len(split)} {split.split} clips of {len(set(split.sources))} files" for split in splits
    )
    print(f"\n{settings.music_dir.name}, seed {settings.train.seed}: {sizes}; {minutes:.1f} minutes\n")
    print((folder / "measures.md").read_text(encoding="utf-8"), flush=True)
    return json.loads((folder / METRICS).read_text(encoding="utf-8"))


def cells(figures: dict) -> list[str]:
    """Return a run's row of the table at the end, below `HEADER` without its first."""
    kernel, stages = figures[KERNEL], [stage[KERNEL] for stage in figures["stages"].values()]
    medians = (figures[name] for name in ("note length", "note steadiness"))
    return [
        _with_interval(kernel),
        _floor(kernel),
        ", ".join(number(figures.get(name, {}).get("value")) for name in ("precision", "recall")),
        *(f"{number(row['generated'])} ({number(row['reference'])})" for row in medians),
        *map(_with_interval, stages),
        _floor(stages[-1]),
    ]


def _with_interval(row: dict) -> str:
    return f"{row['value']:.0f} [{row['low']:.0f}, {row['high']:.0f}]"


def _floor(row: dict) -> str:
    return f"{row['floor']:.0f} ± {row['floor_deviation']:.0f}"


def main() -> None:
    """Parse the arguments and go the whole way for every folder and seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="of music")
    parser.add_argument("--root", type=Path, default=CPU.root / "Data" / "own_music")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the diffusion's training")
    parser.add_argument("--clips", type=int, default=128, help="generated, and of the test split")
    args = parser.parse_args()
    print(machine_line(torch.device("cpu")))
    found = {
        f"{folder.resolve().name}, {seed}": whole_way(settings_of(folder, args.root, seed, args.clips))
        for folder in args.folders
        for seed in args.seeds
    }
    print("The last four columns: kernel distance to the recordings themselves, by stage.\n")
    print_table(HEADER, [[name, *cells(figures)] for name, figures in found.items()])


if __name__ == "__main__":
    main()
