"""From settings and a dataset to a trained diffusion run."""

import functools
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from Libraries.Diffusion import NoiseSchedule
from Libraries.Generator import Generator, make_network
from Libraries.Objective import DiffusionObjective
from Libraries.Plots import plot_metrics, plot_tensors, save_figure
from Libraries.RunLog import read_metrics
from Libraries.Runs import clip_loaders, open_run, results_of
from Libraries.Settings import Settings
from Libraries.Spectrogram import Spectrogram
from Libraries.Training import fit
from Libraries.Utils import pick_device

PREVIEW_SEEDS = range(8)


def build_network(settings: Settings) -> nn.Module:
    """Return a freshly initialised network of these settings: the same weights for the same seed."""
    with torch.random.fork_rng([]):
        torch.manual_seed(settings.train.seed)
        return make_network(settings.unet, settings.diffusion, settings.spectrogram.shape[0])


def make_objective(settings: Settings) -> DiffusionObjective:
    """Return the diffusion loss of these settings."""
    schedule = NoiseSchedule(settings.diffusion)
    return DiffusionObjective(schedule, settings.train.seed, num_classes=settings.unet.num_classes)


def train_diffusion(settings: Settings, run_dir: Path | None = None) -> Path:
    """Train a diffusion model on the dataset of these settings; return its run folder.

    Args:
        settings: of the whole; they are written to the run's conf.json.
        run_dir: an interrupted run to go on with; None starts a new one.

    Raises:
        ValueError: the dataset was built with another spectrogram, or the run with other settings.
        CheckpointError: `run_dir` is no run.
    """
    run_dir = open_run(settings, settings.models_dir, run_dir, ("spectrogram", "unet", "diffusion", "train"))
    fit(
        build_network(settings),
        make_objective(settings),
        functools.partial(clip_loaders, settings),
        settings.train,
        run_dir,
        preview=functools.partial(save_preview, settings, run_dir),
    )
    return run_dir


def overfit_one_batch(settings: Settings, num_steps: int) -> list[float]:
    """Train a fresh network on one batch with ever new noise; return the mean loss of each step.

    A check before the long run: data, network and loss fit together if this falls.
    """
    network, objective = build_network(settings).train(), make_objective(settings)
    loader, _ = clip_loaders(settings, batch_size=settings.train.batch_size, seed=settings.train.seed)
    batch, device = next(iter(loader)), pick_device()
    optimizer = torch.optim.AdamW(network.to(device).parameters(), lr=settings.train.learning_rate)
    losses, B = [], settings.train.batch_size
    for step in tqdm(range(num_steps), desc="overfitting one batch", unit="step"):
        loss = objective.loss(network, batch, torch.arange(step * B, (step + 1) * B)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def save_preview(settings: Settings, run_dir: Path, step: int, network: nn.Module) -> None:
    """Write the same seeds' samples and the loss curves to the run's results folder."""
    device = next(network.parameters()).device
    generator = Generator(
        network, NoiseSchedule(settings.diffusion), Spectrogram(settings.spectrogram), device
    )
    quick = replace(settings.sampler, num_inference_steps=min(20, settings.sampler.num_inference_steps))
    x0 = generator.generate(PREVIEW_SEEDS, quick, batch_size=len(PREVIEW_SEEDS), progress=False)
    titles = [f"seed {seed}" for seed in PREVIEW_SEEDS]
    figure = plot_tensors(x0, titles, settings.spectrogram, f"{run_dir.name}: samples after {step} steps")
    results = results_of(settings, run_dir)
    save_figure(figure, results / f"samples-{step:08d}.png")
    save_figure(plot_metrics(read_metrics(run_dir / "metrics.csv"), run_dir.name), results / "loss.png")
