"""From settings and a dataset to a trained diffusion run."""

import functools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from Libraries.Dataset.Manifest import load_manifest
from Libraries.Diffusion import NoiseSchedule
from Libraries.Plots.CurvePlots import plot_metrics
from Libraries.Plots.SpectrogramPlots import plot_tensors, save_figure
from Libraries.Runs.Autoencoding import LatentCodec, codec_record, train_vae
from Libraries.Runs.Cascade import ViewCodec, open_cascade
from Libraries.Runs.Generator import Generator
from Libraries.Runs.PhaseRuns import with_inverse_of
from Libraries.Runs.Run import clip_loaders, latest_run, open_run, results_of
from Libraries.Runs.Settings import Settings
from Libraries.Runs.Upsampling import train_upsampler
from Libraries.Sound.LowResolution import LowResolution
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Training.Checkpoint import CheckpointError
from Libraries.Training.DiffusionLoss import DiffusionLoss
from Libraries.Training.DiffusionNetwork import make_diffusion_network
from Libraries.Training.Loop import Preview, fit
from Libraries.Training.RunLog import read_metrics
from Libraries.Utils import pick_device

PREVIEW_SEEDS = range(8)


def ensure_vae(settings: Settings) -> None:
    """Train an autoencoder if `vae_run="latest"` asks for one and there is none yet."""
    if settings.vae_run == "latest" and not any(settings.vae_dir.glob("*/latent-*.pth")):
        train_vae(settings)


def ensure_upsampler(settings: Settings) -> None:
    """Train an upsampler if the settings ask for a cascade and there is none of its view yet."""
    if settings.cascade and open_codec(settings).upsampler is None:
        train_upsampler(settings)


def open_codec(settings: Settings) -> LatentCodec | ViewCodec | None:
    """Return the codec of `settings.vae_run`, that of a cascade, or None where diffusion is on spectrograms.

    Raises:
        ValueError: the autoencoder was trained on another spectrogram.
        CheckpointError: there is no such run, or its training has not ended.
    """
    if settings.cascade:
        low = LowResolution(settings.view, settings.spectrogram)
        return open_cascade(settings.upsampler_dir, low)
    if settings.vae_run is None:
        return None
    run_dir = settings.vae_dir / settings.vae_run
    if settings.vae_run == "latest":
        if not any(settings.vae_dir.glob("*/latent-*.pth")):
            raise CheckpointError(
                f"there is no autoencoder in {settings.vae_dir} for vae_run='latest': train one first "
                "(Train VAE), or set vae_run=None for a diffusion on spectrograms"
            )
        run_dir = latest_run(settings.vae_dir, containing="latent-*.pth")
    codec = LatentCodec.load(run_dir)
    if with_inverse_of(codec.spectrogram.config, settings.spectrogram) != settings.spectrogram:
        raise ValueError(
            f"the autoencoder {run_dir.name} was trained on another spectrogram than these settings'; train "
            "one on this (Train VAE), or name another in vae_run"
        )
    return codec


def build_network(settings: Settings, codec: LatentCodec | ViewCodec | None = None) -> nn.Module:
    """Return a freshly initialised network of these settings: the same weights for the same seed.

    `codec` is that of the settings (`open_codec`), for whose latents or small spectrograms it is.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(settings.diffusion_train.seed)
        return make_diffusion_network(
            settings.network_config, settings.diffusion, (codec or settings.spectrogram).shape
        )


def make_loss(settings: Settings) -> DiffusionLoss:
    """Return the diffusion loss of these settings."""
    schedule = NoiseSchedule(settings.diffusion)
    return DiffusionLoss(
        schedule, settings.diffusion_train.seed, num_classes=settings.network_config.num_classes
    )


class EncodedLoader:
    """Batches of a loader with what the codec makes of spectrograms in their place, encoded as they come."""

    def __init__(self, loader: Iterable, codec: LatentCodec | ViewCodec):
        self.loader, self.codec = loader, codec

    def __iter__(self):
        for x0, label in self.loader:
            yield self.codec.encode(x0), label


def diffusion_loaders(settings: Settings, codec: LatentCodec | ViewCodec | None, **options) -> tuple:
    """Return the endless training loader and the validation loader of a diffusion, encoded with a codec.

    `options` are those of `make_loaders`.
    """
    loaders = clip_loaders(settings, **options)
    return loaders if codec is None else tuple(EncodedLoader(loader, codec) for loader in loaders)


def train_diffusion(settings: Settings, run_dir: Path | None = None) -> Path:
    """Train a diffusion model on the dataset of these settings; return its run folder.

    Args:
        settings: of the whole; they are written to the run's conf.json.
        run_dir: an interrupted run to go on with; None starts a new one.

    Raises:
        ValueError: the dataset or the autoencoder was made with another spectrogram, or the run with other
            settings or another autoencoder.
        CheckpointError: `run_dir` is no run, or `vae_run` none that can be used.
    """
    require_classes(settings.network_config.num_classes, load_manifest(settings.dataset_dir)["classes"])
    codec = open_codec(settings)
    record = codec_record(codec.run_dir) if isinstance(codec, LatentCodec) else None
    run_dir = open_run(settings, settings.models_dir, run_dir, settings.diffusion_parts, record)
    fit_diffusion(settings, codec, run_dir, functools.partial(save_preview, settings, codec, run_dir))
    return run_dir


def fit_diffusion(
    settings: Settings, codec: LatentCodec | ViewCodec | None, run_dir: Path, preview: Preview | None = None
) -> None:
    """Train in a run folder that is open, from its newest state if there is one."""
    fit(
        build_network(settings, codec),
        make_loss(settings),
        functools.partial(diffusion_loaders, settings, codec),
        settings.diffusion_train,
        run_dir,
        preview=preview,
    )


def require_classes(num_classes: int, classes: list[str]) -> None:
    """Raise a ValueError if a network with classes has fewer than the dataset."""
    if 0 < num_classes < len(classes):
        raise ValueError(
            f"num_classes={num_classes}, and the dataset has {len(classes)} classes: {', '.join(classes)}; "
            "set it to as many, or to 0"
        )


def overfit_one_batch(settings: Settings, num_steps: int) -> list[float]:
    """Train a fresh network on one batch with ever new noise; return the mean loss of each step.

    A check before the long run: data, network and loss fit together if this falls.
    """
    codec = open_codec(settings)
    network, loss_fn = build_network(settings, codec).train(), make_loss(settings)
    train = settings.diffusion_train
    loader, _ = diffusion_loaders(settings, codec, batch_size=train.batch_size, seed=train.seed)
    batch, device = next(iter(loader)), pick_device()
    optimizer = torch.optim.AdamW(network.to(device).parameters(), lr=train.learning_rate)
    losses, B = [], train.batch_size
    for step in tqdm(range(num_steps), desc="overfitting one batch", unit="step"):
        loss = loss_fn(network, batch, torch.arange(step * B, (step + 1) * B)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def save_preview(
    settings: Settings, codec: LatentCodec | ViewCodec | None, run_dir: Path, step: int, network: nn.Module
) -> None:
    """Write the same seeds' samples and the loss curves to the run's results folder."""
    device = next(network.parameters()).device
    generator = Generator(
        network, NoiseSchedule(settings.diffusion), Spectrogram(settings.spectrogram), device, codec
    )
    quick = replace(settings.sampler, num_inference_steps=min(20, settings.sampler.num_inference_steps))
    x0 = generator.generate(PREVIEW_SEEDS, quick, batch_size=len(PREVIEW_SEEDS), progress=False)
    titles = [f"seed {seed}" for seed in PREVIEW_SEEDS]
    figure = plot_tensors(x0, titles, settings.spectrogram, f"{run_dir.name}: samples after {step} steps")
    results = results_of(settings, run_dir)
    save_figure(figure, results / f"samples-{step:08d}.png")
    save_figure(plot_metrics(read_metrics(run_dir / "metrics.csv"), run_dir.name), results / "loss.png")
