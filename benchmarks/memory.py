"""Measure whether memory stays flat: over a build and an epoch of many clips, and over many training steps.

    python benchmarks/memory.py [--clips 100000] [--steps 10000]

Clips are small (16 x 8 values), so that their number counts and not their size; the network is small too.
Each part has a process of its own. Printed is the curve of its resident memory over the time. A dataset's
manifest, half a kilobyte for every clip, is in memory while the dataset is joined or read: that is a step in
the curve, not a slope.
"""

import argparse
import multiprocessing
import os
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from common import machine_line, print_table
from torch import Tensor, nn

from Conf import BASE, SMOKE
from Libraries.Dataset import SpectrogramDataset, build_dataset, make_loaders
from Libraries.Training import fit
from Libraries.Utils import set_log_level

MOMENTS = 15  # of each curve
PAUSE = 0.05  # s between two looks at the memory
BATCH = 64  # clips
CLIPS_PER_FILE = 1000
SPECTROGRAM = replace(
    BASE.spectrogram, phase="pghi", sample_rate=8000, clip_seconds=0.064, n_fft=128, win_length=128,
    hop_length=64, n_bands=16, narrow_frequency=500.0, max_frequency=3900.0, size_multiple=8,
)  # fmt: skip
DATASET = replace(BASE.dataset, num_workers=0, overlap=0.0, time_shift=False, random_polarity=False)
TRAIN = replace(
    SMOKE.train, batch_size=8, mixed_precision="no", log_every=50, validate_every=1000, save_every=1000,
    snapshot_every=1000, preview_every=1000,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=10_000)
    args = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"  # for the processes that are started
    print(machine_line(torch.device("cpu")), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_music(folder / "music", args.clips)
        grown = []
        for work, count in ((build, args.clips), (read, args.clips), (train, args.steps)):
            # spawned, so that it holds nothing of the others
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                curve = pool.apply(measured, (work, folder, count))
            grown.append([work.__name__, str(count), *summary(curve)])
            print(
                f"\n{work.__name__} {count}: "
                + ", ".join(f"{s:.0f} s {mb:.0f} MB" for s, mb in thinned(curve))
            )
    print()
    print_table(["work", "clips or steps", "seconds", "MB at a fifth", "MB at the end", "peak MB"], grown)


def measured(work, folder: Path, count: int) -> list[tuple[float, float]]:
    """Do the work; return the seconds and the resident memory in MB at short intervals."""
    torch.set_num_threads(1)
    set_log_level("WARNING")
    curve, start, done = [], time.perf_counter(), threading.Event()

    def look() -> None:
        while not done.wait(PAUSE):
            curve.append((time.perf_counter() - start, resident_mb()))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        work(folder, count)
    finally:
        done.set()
        looking.join()
    return curve


def build(folder: Path, clips: int) -> None:
    """Build the dataset."""
    report = build_dataset(folder / "music", folder / "data", SPECTROGRAM, DATASET)
    assert sum(report.clips.values()) == clips


def read(folder: Path, clips: int) -> None:
    """Read as many clips as the dataset has, in the order of training."""
    loader, _ = make_loaders(folder / "data", BATCH, seed=0)
    for _, _batch in zip(range(clips // BATCH), loader, strict=False):
        pass


def train(folder: Path, steps: int) -> None:
    """Train a small network on the dataset."""
    (folder / "run").mkdir()
    C, F, T = SPECTROGRAM.shape
    network = nn.Sequential(nn.Flatten(), nn.Linear(C * F * T, 32), nn.SiLU(), nn.Linear(32, C * F * T))

    def loaders(**options):
        return make_loaders(folder / "data", **options)[0], first

    first = [SpectrogramDataset(folder / "data", "validation").__getitems__([0, 1])]
    fit(network, Reconstruction(), loaders, replace(TRAIN, num_steps=steps), folder / "run")


class Reconstruction:
    """The loss of a network that returns its input."""

    metric_names = ("val_loss",)

    def __call__(self, model: nn.Module, batch: tuple[Tensor, ...], positions: Tensor) -> Tensor:
        return (model(batch[0]) - batch[0].flatten(1)).square().mean(1)

    def validate(self, model: nn.Module, batches) -> dict[str, float]:
        with torch.no_grad():
            return {"val_loss": sum(self(model, batch, batch[1]).mean().item() for batch in batches)}


def write_music(folder: Path, clips: int) -> None:
    """Write noise for this many clips, in files of a thousand."""
    folder.mkdir()
    rng, rate = np.random.default_rng(0), SPECTROGRAM.sample_rate
    for first in range(0, clips, CLIPS_PER_FILE):
        samples = min(CLIPS_PER_FILE, clips - first) * SPECTROGRAM.clip_samples
        soundfile.write(folder / f"{first:07d}.wav", rng.uniform(-0.5, 0.5, samples), rate)


def summary(curve: list[tuple[float, float]]) -> list[str]:
    """Return seconds, MB at a fifth of the time and at the end, and the peak, as text."""
    memory = [mb for _, mb in curve]
    figures = curve[-1][0], memory[len(memory) // 5], memory[-1], max(memory)
    return [f"{figure:.1f}" for figure in figures]


def thinned(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return points of a curve, evenly spread over the time."""
    return [curve[round(i * (len(curve) - 1) / (MOMENTS - 1))] for i in range(MOMENTS)]


def resident_mb() -> float:
    """Return the resident memory of this process in MB."""
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
