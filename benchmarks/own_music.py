"""Go the whole way with other people's music, and say where the music is lost: the demo's second row.

    python benchmarks/own_music.py FOLDER [FOLDER ...] [--root folder] [--seeds 0] [--clips 128]

For every folder of music, a dataset, an autoencoder and a diffusion are made with the settings of the preset
CPU, as `train.py` makes them, and measured against the recordings of the test split: real clips through the
spectrogram, through the autoencoder as well, and generated clips. Each folder has its own place below --root;
a second call keeps what is finished.
"""

import argparse
import re
import time
from pathlib import Path

import torch
from common import machine_line

from Conf import CPU
from Libraries.Dataset import SpectrogramDataset
from Libraries.Evaluation import evaluate
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


def whole_way(settings: Settings) -> Path:
    """Make what is missing, and write what the diffusion is worth; return the folder of its results."""
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
    figures = evaluate(model, *splits, settings, folder)
    save_json(folder / "metrics.json", figures)
    sizes = ", ".join(
        f"{len(split)} {split.split} clips of {len(set(split.sources))} files" for split in splits
    )
    print(f"\n{settings.music_dir.name}, seed {settings.train.seed}: {sizes}; {minutes:.1f} minutes\n")
    print((folder / "measures.md").read_text(encoding="utf-8"), flush=True)
    return folder


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
    for folder in args.folders:
        for seed in args.seeds:
            whole_way(settings_of(folder, args.root, seed, args.clips))


if __name__ == "__main__":
    main()
