"""An autoencoder as a whole: settings and dataset -> trained run -> codec of spectrograms and latents."""

import functools
import hashlib
import math
from pathlib import Path

import torch
from torch import Tensor

from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Plots.CurvePlots import plot_vae_metrics
from Libraries.Plots.SpectrogramPlots import plot_reconstructions, save_figure
from Libraries.Runs.PhaseRuns import open_run_spectrogram
from Libraries.Runs.Run import clip_loaders, open_run, read_conf, results_of
from Libraries.Runs.Settings import Settings, from_dict
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Training.Checkpoint import (
    CheckpointError,
    latest_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from Libraries.Training.Loop import fit, process_state
from Libraries.Training.RunLog import read_metrics
from Libraries.Training.VAELoss import TrainableVAE, VAELoss
from Libraries.Utils import autocast, pick_device, resolve_precision, spread_indices
from Libraries.VAE import VAE, Posterior, VAEConfig, require_shape

PREVIEW_CLIPS = 4
CODEC_BATCH = 16  # clips at a time: more is no faster and takes more memory
SMALLEST_STD = 1e-4  # of a latent channel that carries nothing


class LatentCodec:
    """A trained run that turns spectrograms into latents of zero mean and unit deviation, and back.

    Mean and standard deviation of every latent channel were measured on the training split, so no scale has
    to be guessed.

    Args:
        vae: with the EMA weights.
        mean, std: (channels,), of the posterior means.
        spectrogram: with the typical gain, for `to_audio`.
        device: where it shall run.
    """

    def __init__(self, vae: VAE, mean: Tensor, std: Tensor, spectrogram: Spectrogram, device: torch.device):
        self.vae = vae.to(device, memory_format=torch.channels_last).eval()
        self.mean, self.std = (value.to(device).reshape(1, -1, 1, 1) for value in (mean, std))
        self.spectrogram, self.device = spectrogram, device
        self.precision = resolve_precision("auto")
        self.run_dir: Path | None = None

    @classmethod
    def load(cls, run_dir: Path, device: torch.device | None = None) -> "LatentCodec":
        """Load the newest EMA weights of a run and the statistics measured with them.

        Raises:
            CheckpointError: the folder is no run, has no weights, no statistics, or they do not fit.
        """
        run_dir, device = Path(run_dir), device or pick_device()
        conf = read_conf(run_dir)
        config = from_dict(SpectrogramConfig, conf["settings"]["spectrogram"])
        vae = VAE(from_dict(VAEConfig, conf["settings"]["vae"]), config.shape)
        path = latest_checkpoint(run_dir, "ema")
        weights = load_checkpoint(path)["weights"]
        own = {name.removeprefix("vae."): w for name, w in weights.items() if name.startswith("vae.")}
        load_weights(vae, own, path)
        statistics = _read_statistics(run_dir, path)
        spectrogram = open_run_spectrogram(run_dir, None, device)
        codec = cls(vae, statistics["mean"], statistics["std"], spectrogram, device)
        codec.run_dir = run_dir
        return codec

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, rows, frames) of a latent."""
        return self.vae.latent_shape

    @property
    def stride(self) -> tuple[int, int]:
        """Spectrogram rows a latent row, and frames a latent frame; for linear, with one position, all."""
        return tuple(
            size // positions
            for size, positions in zip(self.vae.padded_shape[1:], self.shape[1:], strict=True)
        )

    @property
    def compression(self) -> float:
        """Values of a spectrogram behind one value of the latent."""
        return math.prod(self.vae.shape) / math.prod(self.shape)

    @torch.no_grad()
    def posterior(self, x0: Tensor) -> Posterior:
        """Return the posterior of x0 (B, C, F, T) as the network gives it, not normalised, on x0's device."""
        with autocast(self.device, self.precision):
            parts = [self.vae.encode(part.to(self.device)) for part in x0.split(CODEC_BATCH)]
        return Posterior(*(torch.cat(values).to(x0.device) for values in zip(*parts, strict=True)))

    def encode(self, x0: Tensor) -> Tensor:
        """Return latents float32 (B, *shape) of x0 (B, C, F, T): posterior means, normalised, on x0's device.

        Raises:
            ValueError: x0 has another shape than the run's spectrograms.
        """
        mean, std = self.mean.to(x0.device), self.std.to(x0.device)
        return (self.posterior(x0).mu - mean) / std

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return spectrograms float32 (B, C, F, T) of normalised latents (B, *shape), on z's device.

        Raises:
            ValueError: z has another shape than the run's latents.
        """
        require_shape("z", z, self.shape)
        with autocast(self.device, self.precision):
            parts = [
                self.vae.decode(part.to(self.device) * self.std + self.mean) for part in z.split(CODEC_BATCH)
            ]
        return torch.cat(parts).to(z.device)

    def to_audio(self, x0: Tensor) -> Tensor:
        """Decode x0 (N, C, F, T) at the training music's typical level; returns (N, 1, L), about [-1, 1]."""
        return self.spectrogram.decode(x0)


def codec_record(run_dir: Path) -> dict[str, str]:
    """Return what a diffusion run keeps of the autoencoder it belongs to: its run and a hash of its weights.

    Raises:
        CheckpointError: the run has no weights or its latents were never measured.
    """
    path = latest_checkpoint(run_dir, "ema")
    _read_statistics(Path(run_dir), path)
    content = path.read_bytes() + _statistics_path(Path(run_dir), path).read_bytes()
    return {"run": Path(run_dir).name, "weights": hashlib.sha256(content).hexdigest()}


def load_codec(parent: Path, record: dict[str, str], device: torch.device | None = None) -> LatentCodec:
    """Load the codec of a `codec_record` from the folder of the autoencoders' runs.

    Raises:
        CheckpointError: there is no such run any more, or its weights are others now.
    """
    run_dir = Path(parent) / record["run"]
    if codec_record(run_dir) != record:
        raise CheckpointError(
            f"this diffusion was trained in the latents of {record['run']}, and the weights in {run_dir} are "
            "others now: it cannot be used with them; bring the old ones back or train it again"
        )
    return LatentCodec.load(run_dir, device)


def build_vae(settings: Settings) -> TrainableVAE:
    """Return a freshly initialised network of these settings: the same weights for the same seed."""
    with torch.random.fork_rng([]):
        torch.manual_seed(settings.vae_train.seed)
        return TrainableVAE(VAE(settings.vae, settings.spectrogram.shape), settings.vae_loss)


def make_vae_loss(settings: Settings) -> VAELoss:
    """Return the loss of these settings, in as many processes as there are now."""
    train = settings.vae_train
    samples_per_step = train.batch_size * train.grad_accumulation * process_state().num_processes
    latent_shape = settings.vae.latent_shape(settings.spectrogram.shape)
    return VAELoss(settings.vae_loss, latent_shape, samples_per_step, train.seed)


def train_vae(settings: Settings, run_dir: Path | None = None) -> Path:
    """Train an autoencoder on the dataset of these settings, measure its latents; return its run folder.

    Args:
        settings: of the whole; they are written to the run's conf.json.
        run_dir: an interrupted run to go on with; None starts a new one.

    Raises:
        ValueError: the dataset was built with another spectrogram, or the run with other settings.
        CheckpointError: `run_dir` is no run.
    """
    run_dir = open_run(settings, settings.vae_dir, run_dir, ("spectrogram", "vae", "vae_loss", "vae_train"))
    network = fit(
        build_vae(settings),
        make_vae_loss(settings),
        functools.partial(clip_loaders, settings),
        settings.vae_train,
        run_dir,
        preview=functools.partial(save_vae_preview, settings, run_dir),
    )
    if process_state().is_main_process:
        save_latent_statistics(network.vae, SpectrogramDataset(settings.dataset_dir, "train"), run_dir)
    process_state().wait_for_everyone()
    return run_dir


@torch.no_grad()
def measure_latents(vae: VAE, dataset: SpectrogramDataset) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each latent channel over a split, float32 (channels,) each.

    Of the posterior means, pooled over clips and positions; summed in float64.
    """
    device = next(vae.parameters()).device
    count, total, squares = 0, 0.0, 0.0
    for start in range(0, len(dataset), CODEC_BATCH):
        clips = dataset.__getitems__(list(range(start, min(start + CODEC_BATCH, len(dataset)))))[0]
        mu = vae.encode(clips.to(device)).mu.transpose(0, 1).flatten(1).double().cpu()  # (channels, values)
        count += mu.shape[1]
        total, squares = total + mu.sum(1), squares + mu.square().sum(1)
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=SMALLEST_STD**2).sqrt()
    return mean.float(), std.float()


def save_latent_statistics(vae: VAE, dataset: SpectrogramDataset, run_dir: Path) -> None:
    """Measure the latents with the newest EMA weights, as `vae` has them, and write latent-<step>.pth."""
    mean, std = measure_latents(vae, dataset)
    path = _statistics_path(run_dir, latest_checkpoint(run_dir, "ema"))
    save_checkpoint(path, {"mean": mean, "std": std, "clips": len(dataset)})


def save_vae_preview(settings: Settings, run_dir: Path, step: int, network: TrainableVAE) -> None:
    """Write the same validation clips' reconstructions and the loss curves to the run's results folder."""
    dataset = SpectrogramDataset(settings.dataset_dir, "validation")
    x0 = dataset.__getitems__(spread_indices(len(dataset), PREVIEW_CLIPS))[0]
    with torch.no_grad():
        device = next(network.parameters()).device
        reconstruction = network.vae.decode(network.vae.encode(x0.to(device)).mu).cpu()
    title = f"{run_dir.name}: reconstructions after {step} steps"
    results = results_of(settings, run_dir)
    figure = plot_reconstructions(x0, reconstruction, settings.spectrogram, title)
    save_figure(figure, results / f"reconstructions-{step:08d}.png")
    save_figure(plot_vae_metrics(read_metrics(run_dir / "metrics.csv"), run_dir.name), results / "loss.png")


def _statistics_path(run_dir: Path, ema: Path) -> Path:
    return run_dir / ema.name.replace("ema-", "latent-")


def _read_statistics(run_dir: Path, ema: Path) -> dict[str, Tensor]:
    path = _statistics_path(run_dir, ema)
    if not path.exists():
        raise CheckpointError(
            f"{run_dir} has no {path.name}: its latents were never measured, which training does at its end; "
            "go on with it: train_vae(settings, run_dir)"
        )
    return load_checkpoint(path)
