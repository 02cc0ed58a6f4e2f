"""Measure what grows with a dataset: the work of encoding, the index, the order of an epoch, one batch.

    python benchmarks/scaling.py encode 60       # minutes of music, by BASE's settings, on one core
    python benchmarks/scaling.py latents 64      # clips, by the autoencoder of BASE's settings
    python benchmarks/scaling.py index 20000     # sources of 64 clips, whose finished shards become a dataset
    python benchmarks/scaling.py read 96000000   # clips of a dataset in many files, opened and read
    python benchmarks/scaling.py order 96000000  # clips in the order of an epoch

Seconds are of CPU time, which other processes on the machine hardly change; "wall" is what a clock shows.
Rows that are not looked at are left empty: an index of 100,000 hours needs no 18 TB.
"""

import argparse
import json
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import machine_line
from preprocessing import make_audio

from Conf import BASE
from Libraries.Dataset import SpectrogramDataset, build_dataset
from Libraries.Dataset.Batches import StepSampler
from Libraries.Dataset.ClipTable import CLIP, CLIPS, SPLITS, write_sources
from Libraries.Dataset.Join import BUILDING, Join
from Libraries.Dataset.Manifest import FORMAT, MANIFEST, SHARDS, content_settings, manifest_bytes
from Libraries.Dataset.Permutation import permuted
from Libraries.Dataset.Plan import MusicPlan
from Libraries.Dataset.RowFiles import ROWS
from Libraries.Runs import LatentCodec
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.VAE import VAE

CLIPS_OF_A_SOURCE = 64  # four minutes of BASE's clips
MANY = replace(BASE.dataset, num_workers=0, one_file_clips=0)


class Stopwatch:
    """CPU and wall seconds since it was made."""

    def __init__(self):
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def __str__(self) -> str:
        return f"{time.process_time() - self.cpu:.3f} s (wall {time.perf_counter() - self.wall:.3f} s)"


def main() -> None:
    """Measure one thing; print a line for each figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=MEASURES)
    parser.add_argument("number", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print(machine_line(torch.device("cpu")))
        MEASURES[arguments.what](arguments.number, Path(folder))
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


def encode(minutes: int, folder: Path) -> None:
    """Build a dataset of so much music."""
    music = make_audio(folder / "music", minutes)
    watch = Stopwatch()
    report = build_dataset(music, folder / "out", BASE.spectrogram, MANY)
    size = sum(file.stat().st_size for file in (folder / "out").rglob("*") if file.is_file())
    print(
        f"{report.seconds / 3600:.3f} hours, {sum(report.clips.values())} clips: {watch}; {size / 1e6:.0f} MB"
    )


def latents(clips: int, folder: Path) -> None:
    """Encode so many clips by an autoencoder with random weights."""
    vae, shape = VAE(BASE.vae.network, BASE.spectrogram.shape), BASE.spectrogram.shape
    channels = torch.ones(BASE.vae.network.latent_channels)
    spectrogram = Spectrogram(replace(BASE.spectrogram, phase="pghi"))
    codec = LatentCodec(vae, 0 * channels, channels, spectrogram, torch.device("cpu"))
    x0 = torch.rand(16, *shape)
    codec.encode(x0)
    watch = Stopwatch()
    for _ in range(clips // 16):
        z = codec.encode(x0)
    print(f"{clips} clips to {tuple(z.shape[1:])}: {watch}; {2 * z[0].numel()} bytes a clip")


def index(sources: int, folder: Path) -> None:
    """Join so many finished shards, whose rows are empty."""
    plan, tasks, listed = finished_shards(sources, folder)
    watch = Stopwatch()
    Join(plan, tasks, listed).commit()
    tables = {path.name: path.stat().st_size for path in (folder / "out" / SHARDS).glob("*s.*[ly]")}
    print(f"{sources} sources, {sources * CLIPS_OF_A_SOURCE} clips joined: {watch}; bytes {tables}")


def finished_shards(sources: int, folder: Path) -> tuple:
    """Write the entries of so many sources; return plan, tasks and sources for a `Join`."""
    (folder / "music").mkdir()
    (folder / "music" / "a.wav").touch()
    plan = MusicPlan(folder / "music", folder / "out", BASE.spectrogram, MANY)
    building = folder / "out" / BUILDING
    building.mkdir(parents=True)
    clips = [{"offset": 3.744 * i, "gain": [-60.1 - i, 40.0]} for i in range(CLIPS_OF_A_SOURCE)]
    entry = {"skipped": None, "seconds": 240.0, "silent_clips": 0, "sha256": "0" * 64, "clips": clips}
    text, listed, tasks = json.dumps(entry), [], []
    for i in range(sources):
        listed.append({"file": f"artist {i // 100}/album/piece {i}.flac", "fingerprint": "0" * 64})
        tasks.append(plan.task(listed[-1], building / f"{i:032x}"))
        tasks[-1].entry_path.write_text(text)
        tasks[-1].rows_path.touch()
    return plan, tasks, listed


def read(clips: int, folder: Path) -> None:
    """Open a dataset of so many clips and read batches of 32 in the order of its first epoch."""
    write_tables(clips, folder)
    before, watch = resident_mb(), Stopwatch()
    dataset = SpectrogramDataset(folder, "train")
    print(f"{len(dataset)} training clips opened: {watch}")
    batches = [StepSampler(len(dataset), 32, seed=0).batch(step) for step in range(20)]
    for position, _ in (item for batch in batches for item in batch):
        shard = dataset.manifest["sources"][int(dataset.records["source"][position])]["shard"]
        with open(folder / SHARDS / (shard + ROWS), "wb") as file:  # sparse
            file.truncate(2 * CLIPS_OF_A_SOURCE * int(np.prod(dataset.shape)))
    watch = Stopwatch()
    for batch in batches:
        dataset.__getitems__(batch)
    grown = resident_mb() - before
    print(f"20 batches of 32 from 640 shards: {watch}; {grown:.0f} MB more in memory than before opening")


def resident_mb() -> float:
    """Return the memory of its own that this process holds now, without what files are mapped."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def write_tables(clips: int, folder: Path) -> None:
    """Write the tables and the manifest of a dataset whose clips are all for training."""
    (folder / SHARDS).mkdir()
    sources = clips // CLIPS_OF_A_SOURCE
    records = np.lib.format.open_memmap(folder / SHARDS / CLIPS, "w+", CLIP, (clips,))
    for start in range(0, clips, 2**20):
        number = np.arange(start, min(start + 2**20, clips))
        part = records[start : start + len(number)]
        part["source"], part["row"] = number // CLIPS_OF_A_SOURCE, number % CLIPS_OF_A_SOURCE
        part["offset"], part["gain"], part["label"] = 3.744 * part["row"], (-60.0, 40.0), 0
    records.flush()
    about = {"fingerprint": "0" * 64, "seconds": 240.0, "silent_clips": 0, "skipped": None, "split": "train"}
    rows = ({"file": f"artist {i // 100}/{i}.flac", **about, "shard": f"{i:032x}"} for i in range(sources))
    write_sources(folder / SHARDS, rows, sources)
    manifest = {
        "format": FORMAT,
        "settings": content_settings(BASE.spectrogram, MANY),
        "stride_frames": 408,
        "shape": (clips, *BASE.spectrogram.shape),
        "sha256": "",
        "classes": ["all"],
        "gain": [-60.0, 40.0],
        "splits": {split: clips if split == "train" else 0 for split in SPLITS},
        "tables": {},
    }
    (folder / MANIFEST).write_bytes(manifest_bytes(manifest))


def order(clips: int, folder: Path) -> None:
    """Draw batches of 32 clips; then make the table that this replaces."""
    watch = Stopwatch()
    for step in range(100):
        permuted(np.arange(32 * step, 32 * step + 32), clips, (0, 0))
    print(f"100 batches of 32 of {clips} clips, computed: {watch}")
    watch = Stopwatch()
    table = np.random.default_rng(0).permutation(clips)
    print(f"the same as a table: {watch}; {table.nbytes / 1e6:.0f} MB for an epoch and process")


MEASURES = {"encode": encode, "latents": latents, "index": index, "read": read, "order": order}


if __name__ == "__main__":
    main()
