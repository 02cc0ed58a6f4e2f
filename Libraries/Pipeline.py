"""A diffusion model as a whole: settings and dataset -> trained run -> new music."""

import contextlib
import functools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from Libraries.Checkpoint import latest_checkpoint, load_checkpoint, load_weights
from Libraries.Diffusion import DiffusionConfig, DiffusionObjective, NoiseSchedule
from Libraries.Networks import make_network
from Libraries.Plots import plot_metrics, plot_tensors, save_figure
from Libraries.RunLog import read_metrics
from Libraries.Runs import clip_loaders, open_run, read_conf, results_of
from Libraries.Samplers import Callback, SamplerConfig, sample
from Libraries.Settings import Settings, from_dict
from Libraries.Spectrogram import Gain, Spectrogram
from Libraries.SpectrogramConfig import SpectrogramConfig
from Libraries.Training import fit, resolve_precision
from Libraries.U_Net import UNetConfig
from Libraries.Utils import pick_device

PREVIEW_SEEDS = range(8)


class Generator:
    """A trained run that makes music: network with EMA weights, schedule, spectrogram, typical gain."""

    def __init__(
        self, network: nn.Module, schedule: NoiseSchedule, spectrogram: Spectrogram, device: torch.device
    ):
        self.network = network.to(device, memory_format=torch.channels_last).eval()
        self.schedule, self.spectrogram, self.device = schedule.to(device), spectrogram, device
        self.precision = resolve_precision("auto")

    @classmethod
    def load(cls, run_dir: Path, device: torch.device | None = None) -> "Generator":
        """Load the newest EMA weights of a run, built from the run's own conf.json.

        Raises:
            CheckpointError: the folder is no run, has no weights, or they do not fit its settings.
        """
        conf = read_conf(run_dir)
        settings = conf["settings"]
        spectrogram_config = from_dict(SpectrogramConfig, settings["spectrogram"])
        unet = from_dict(UNetConfig, settings["unet"])
        network = make_network(settings["network"], unet, spectrogram_config.shape[0])
        path = latest_checkpoint(run_dir, "ema")
        load_weights(network, load_checkpoint(path)["weights"], path)
        schedule = NoiseSchedule(from_dict(DiffusionConfig, settings["diffusion"]))
        gain = Gain(*(torch.tensor([value]) for value in conf["gain"]))
        return cls(network, schedule, Spectrogram(spectrogram_config, gain), device or pick_device())

    def denoiser(self, cond: Tensor | None = None):
        """Return `model(x_t, t)` for the samplers, in this machine's fast precision."""
        autocast = contextlib.nullcontext
        if self.precision != "no" and self.device.type in ("cuda", "cpu"):
            dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
            autocast = functools.partial(torch.autocast, self.device.type, dtype)

        def model(x_t: Tensor, t: Tensor) -> Tensor:
            with autocast():
                return self.network(x_t, t, cond).float()

        return model

    def generate(
        self,
        seeds: Iterable[int],
        config: SamplerConfig,
        batch_size: int,
        callback: Callback | None = None,
        progress: bool = True,
    ) -> Tensor:
        """Sample one clip a seed; returns x0 (N, C, F, T) on the CPU."""
        shape = self.spectrogram.config.shape
        options = {
            "batch_size": batch_size,
            "device": self.device,
            "callback": callback,
            "progress": progress,
        }
        return sample(self.denoiser(), self.schedule, config, seeds, shape, **options).cpu()

    def to_audio(self, x0: Tensor) -> Tensor:
        """Decode x0 (N, C, F, T) at the training music's typical level; returns (N, 1, L), about [-1, 1]."""
        return self.spectrogram.decode(x0)


def build_network(settings: Settings) -> nn.Module:
    """Return a freshly initialised network of these settings: the same weights for the same seed."""
    with torch.random.fork_rng([]):
        torch.manual_seed(settings.train.seed)
        return make_network(settings.network, settings.unet, settings.spectrogram.shape[0])


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
    run_dir = open_run(
        settings, settings.models_dir, run_dir, ("spectrogram", "network", "unet", "diffusion", "train")
    )
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
