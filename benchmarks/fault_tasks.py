"""What `faults.py` interrupts: small builds, trainings and evaluations, and what they leave on disk."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from common import REPOSITORY  # noqa: F401 - puts the repository on the path
from torch import Tensor

from Conf import SMOKE, in_space
from Libraries.Dataset import SpectrogramDataset, build_dataset
from Libraries.Evaluation import evaluate, example_input
from Libraries.Measures import Uncertainty
from Libraries.Plots import plot_waveform_spectrograms
from Libraries.Runs import (
    DiffusionRun,
    diffusion_recipe,
    find_diffusion,
    new_run_dir,
    phase_recipe,
    upsampler_recipe,
    vae_recipe,
)
from Libraries.Runs import train as train_by
from Libraries.Runs.Recipe import Recipe, resumable
from Libraries.Runs.Settings import Settings, changed
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Training import export_graphs, read_metrics, save_json
from Libraries.Training.Checkpoint import load_checkpoint

SAVING = {
    "num_steps": 8, "batch_size": 2, "save_every": 2, "snapshot_every": 2, "validate_every": 4,
    "num_validation_clips": 2, "preview_every": 8,
}  # fmt: skip
ALWAYS = {**SAVING, "save_every": 1, "snapshot_every": 1}
RATE = 16_000  # Hz
SECONDS = 5  # of a piece
LEFT_OUT = {
    ".lock",
    "log.txt",
    "conf.json",
    "graph.pt",
    "graph.pt2",
}  # with times, paths or names of the machine
MEASURED = {"samples_per_second", "seconds_per_clip"}


@dataclass(frozen=True)
class Task:
    """One kind of work, done by a function of the settings that goes on where an earlier call was killed."""

    work: Callable[[Settings], object]
    folders: tuple[str, ...]  # below the root: what it makes
    space: str = "spectrogram"
    needs: tuple[str, ...] = ("build",)  # tasks that come first


def build(settings: Settings) -> None:
    build_dataset(settings.music_dir, settings.dataset_dir, settings.spectrogram, settings.dataset)


def training(recipe_of: Callable[[Settings], Recipe]) -> Callable[[Settings], None]:
    def work(settings: Settings) -> None:
        recipe = recipe_of(settings)
        train_by(recipe, resumable(recipe))

    return work


def saving_always(settings: Settings) -> Recipe:
    return diffusion_recipe(replace(settings, train=replace(settings.train, **ALWAYS)))


def evaluation(settings: Settings) -> None:
    Uncertainty.RESAMPLES, Uncertainty.FLOOR_SETS = 8, 3  # coarse, and fast
    model = DiffusionRun.load(find_diffusion(settings))
    results = new_run_dir(model.run.results_dir, "eval")
    splits = (SpectrogramDataset(settings.dataset_dir, split) for split in ("train", "test"))
    save_json(results / "metrics.json", evaluate(model, *splits, settings, results))
    export_graphs(model.network.cpu(), example_input(model), model.run.folder)


TASKS = {
    "build": Task(build, ("Data/smoke",), needs=()),
    "diffusion": Task(training(diffusion_recipe), ("Models/diffusion", "Results/diffusion")),
    "checkpoints": Task(training(saving_always), ("Models/diffusion", "Results/diffusion")),
    "autoencoder": Task(training(vae_recipe), ("Models/vae", "Results/vae")),
    "latents": Task(
        training(diffusion_recipe), ("Models/diffusion", "Results/diffusion"), "latent",
        ("build", "autoencoder"),
    ),
    "upsampler": Task(training(upsampler_recipe), ("Models/upsampler", "Results/upsampler"), "small"),
    "phase": Task(
        training(lambda settings: phase_recipe(settings, settings.music_dir)),
        ("Models/phase", "Results/phase"),
    ),
    "evaluation": Task(evaluation, ("Results/diffusion",), needs=("build", "diffusion")),
}  # fmt: skip


def warm_up(root: Path) -> None:
    """Compile and load what every process would by itself."""
    spectrogram = Spectrogram(settings_of(TASKS["build"], root).spectrogram)
    x0, gain = spectrogram.encode_with_gain(torch.randn(1, 1, spectrogram.config.clip_samples))
    sound = spectrogram.decode(x0, gain)
    figure = plot_waveform_spectrograms([sound[0]], ["noise"], RATE, "")
    figure.savefig(io.BytesIO(), format="png")


def settings_of(task: Task, root: Path) -> Settings:
    """Return SMOKE, shorter and with more saves, in the task's space, on music in the root."""
    trains = {
        part: replace(train, **SAVING)
        for part, train in (
            ("train", SMOKE.train), ("vae.train", SMOKE.vae.train),
            ("upsampler.train", SMOKE.upsampler.train), ("phase.train", SMOKE.phase.train),
        )
    }  # fmt: skip
    own = {
        "root": root, "music_dir": root / "music", "spectrogram.clip_seconds": 1.024,
        "dataset.num_workers": 0, "evaluation.num_samples": 2,
    }  # fmt: skip
    return changed(in_space(SMOKE, task.space), own | trains)


def write_music(folder: Path) -> None:
    """Write six pieces of some seconds, chords that change every half second."""
    folder.mkdir(parents=True)
    rng, seconds = np.random.default_rng(0), np.arange(SECONDS * RATE) / RATE
    for number in range(6):
        pitches = rng.uniform(100, 900, (2 * SECONDS, 3))[(seconds * 2).astype(int)]
        wave = np.sin(2 * np.pi * pitches * seconds[:, None]).mean(1) * np.exp(-4 * (seconds % 0.5))
        soundfile.write(folder / f"piece{number}.wav", 0.5 * wave, RATE)


def clear(task: Task, root: Path) -> None:
    """Delete what a task has made."""
    for folder in task.folders:
        shutil.rmtree(root / folder, ignore_errors=True)


def digest(task: Task, root: Path) -> str:
    """Return a hash of all that the newest run or evaluation of a task has left, except times and paths."""
    total = hashlib.sha256()
    for path in sorted(path for folder in task.folders for path in _newest(root / folder).rglob("*")):
        if path.is_file() and path.name not in LEFT_OUT and ".tmp" not in path.name:
            total.update(path.name.encode())
            _add(total, _content(path))
    return total.hexdigest()


def leftovers(root: Path) -> list[Path]:
    """Return the temporary files below the root."""
    return list(root.rglob(".*.tmp*"))


def _newest(folder: Path) -> Path:
    """Return the newest run, and of a run's evaluations the newest."""
    while runs := sorted(folder.glob("[0-9][0-9][0-9][0-9][0-9]-*/")):
        folder = runs[-1]
    return folder


def _content(path: Path) -> object:
    if path.suffix == ".pth":
        return load_checkpoint(path)
    if path.suffix == ".csv":
        return [
            {name: value for name, value in row.items() if name not in MEASURED} for row in read_metrics(path)
        ]
    if path.name == "metrics.json":
        return _lasting(json.loads(path.read_text()))
    return path.read_bytes()


def _lasting(values: dict) -> dict:
    return {name: value for name, value in values.items() if name not in MEASURED}


def _add(total, content: object) -> None:
    """Add nested content to a hash, tensors bit by bit."""
    if isinstance(content, dict):
        for name in sorted(content, key=str):
            total.update(str(name).encode())
            _add(total, content[name])
    elif isinstance(content, list | tuple):
        for part in content:
            _add(total, part)
    else:
        is_tensor = isinstance(content, Tensor)
        total.update(content.numpy().tobytes() if is_tensor else repr(content).encode())
