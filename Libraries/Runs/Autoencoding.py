"""Autoencoder runs: settings and dataset -> trained run -> codec between spectrograms and latents."""

import functools
import hashlib
import math
from pathlib import Path

import torch
from torch import Tensor

from Libraries.Dataset.Manifest import INVERSE_ONLY
from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Plots.CurvePlots import plot_vae_metrics
from Libraries.Plots.SpectrogramPlots import plot_reconstructions
from Libraries.Runs.CodecEditing import LatentEditor
from Libraries.Runs.Leakage import find_unheard, require_unheard
from Libraries.Runs.Recipe import (
    AUGMENTATION,
    Recipe,
    begin_with,
    clip_loaders,
    music_record,
    resumable,
    save_preview_figures,
    train,
)
from Libraries.Runs.Release import release
from Libraries.Runs.Run import Run, find_run, named_run, with_inverse_of
from Libraries.Runs.Settings import LATEST, Settings
from Libraries.Sampling.Editing import Editor
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Training.Checkpoint import CheckpointError, load_checkpoint, load_weights, save_checkpoint
from Libraries.Training.Loop import decided_once, process_state
from Libraries.Training.Tracker import Shown
from Libraries.Training.VAELoss import TrainableVAE, VAELoss
from Libraries.Utils import autocast, get_logger, pick_device, resolve_precision, spread_indices
from Libraries.VAE import VAE, Posterior, require_shape

log = get_logger("Autoencoding")

BEGINNING = ("vae.start", "vae.freeze_encoder")
PREVIEW_CLIPS = 4
CODEC_BATCH = 16  # clips at a time: more is no faster and takes more memory
SMALLEST_STD = 1e-4  # of a latent channel that carries nothing


class LatentCodec:
    """A trained autoencoder that turns spectrograms into latents of zero mean and unit variance, and back.

    Mean and standard deviation of every latent channel were measured on the training split, so no scale has
    to be guessed.

    Args:
        vae: with the EMA weights.
        mean, std: (channels,), of the posterior means.
        spectrogram: with the typical gain, for `to_audio`.
        device: where the network runs.
    """

    def __init__(self, vae: VAE, mean: Tensor, std: Tensor, spectrogram: Spectrogram, device: torch.device):
        self.vae = vae.to(device, memory_format=torch.channels_last).eval()
        self.mean, self.std = (value.to(device).reshape(1, -1, 1, 1) for value in (mean, std))
        self.spectrogram, self.device = spectrogram, device
        self.precision = resolve_precision("auto")
        self.run_dir: Path | None = None

    made_of = ()
    bounded = False  # latents have no range that x0 could be clamped to

    @classmethod
    def load(cls, run_dir: Path, device: torch.device | None = None) -> "LatentCodec":
        """Load the newest EMA weights of a run and the statistics measured with them.

        Raises:
            CheckpointError: the folder is not a run, lacks weights or statistics, or they do not fit.
        """
        run, device = Run(run_dir), device or pick_device()
        vae = VAE(run.config("vae.network"), run.config("spectrogram").shape)
        weights = run.weights().items()
        own = {name.removeprefix("vae."): w for name, w in weights if name.startswith("vae.")}
        load_weights(vae, own, run.weights_path())
        statistics = _read_statistics(run)
        codec = cls(vae, statistics["mean"], statistics["std"], run.spectrogram(device=device), device)
        codec.run_dir = run.folder
        return codec

    @classmethod
    def open(
        cls, settings: Settings, device: torch.device | None = None, requires: dict[str, str] | None = None
    ) -> "LatentCodec":
        """Return the codec of `settings.vae.run`.

        Args:
            requires: record of the run and weights that a trained diffusion depends on (`requires`).

        Raises:
            ValueError: the autoencoder was trained on another spectrogram.
            LeakageError: the autoencoder was trained on test pieces of the settings' dataset.
            CheckpointError: there is no such run, its training is not finished, or its weights have changed.
        """
        if requires:
            return cls._required(named_run(settings.models_dir, "vae", requires["run"]), requires, device)
        run_dir = find_vae(settings)
        require_unheard(settings.dataset_dir, [Run(run_dir)])
        codec = cls.load(run_dir, device)
        theirs = codec.spectrogram.config
        if with_inverse_of(theirs, settings.spectrogram) != settings.spectrogram:
            raise ValueError(
                f"the autoencoder {codec.run_dir.name} was trained on another spectrogram than that of these "
                "settings; train one on this (Train VAE), or name another in vae.run"
            )
        return codec

    @classmethod
    def _required(cls, run_dir: Path, requires: dict[str, str], device: torch.device | None) -> "LatentCodec":
        if codec_record(run_dir) != requires:
            raise CheckpointError(
                f"this diffusion was trained in the latents of {requires['run']}, but the weights in "
                f"{run_dir} have changed: restore the old weights, or train the diffusion again"
            )
        return cls.load(run_dir, device)

    @staticmethod
    def prepare(settings: Settings) -> None:
        """Train an autoencoder to its end if the settings ask for the newest and none is finished."""
        if settings.vae.run == LATEST and decided_once(lambda: _newest(settings, unheard=True) is None):
            train_vae(settings, resumable(vae_recipe(settings)))

    def require_unheard(self, dataset_dir: Path) -> None:
        """Raise a LeakageError if the run was trained on a test piece of the dataset."""
        require_unheard(dataset_dir, [Run(self.run_dir)] if self.run_dir else [])

    @property
    def requires(self) -> dict[str, str]:
        """The record of the autoencoder that a diffusion run keeps (`codec_record`); empty without a run."""
        return codec_record(self.run_dir) if self.run_dir else {}

    def editor(self, editor: Editor) -> LatentEditor:
        """Return a spectrogram editor that uses an editor of latents."""
        return LatentEditor(editor, self)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, rows, frames) of a latent."""
        return self.vae.latent_shape

    @property
    def stride(self) -> tuple[int, int]:
        """Spectrogram rows per latent row, and frames per latent frame; all of them for kind "linear"."""
        return tuple(
            size // positions
            for size, positions in zip(self.vae.padded_shape[1:], self.shape[1:], strict=True)
        )

    @property
    def compression(self) -> float:
        """Spectrogram values per latent value."""
        return math.prod(self.vae.shape) / math.prod(self.shape)

    @torch.no_grad()
    def posterior(self, x0: Tensor) -> Posterior:
        """Return the network's posterior of x0 (B, C, F, T), not normalised, on x0's device."""
        with autocast(self.device, self.precision):
            parts = [self.vae.encode(part.to(self.device)) for part in x0.split(CODEC_BATCH)]
        return Posterior(*(torch.cat(values).to(x0.device) for values in zip(*parts, strict=True)))

    def encode(self, x0: Tensor) -> Tensor:
        """Return latents float32 (B, *shape) of x0 (B, C, F, T): posterior means, normalised, on x0's device.

        Raises:
            ValueError: x0 does not have the shape of the run's spectrograms.
        """
        mean, std = self.mean.to(x0.device), self.std.to(x0.device)
        return (self.posterior(x0).mu - mean) / std

    @torch.no_grad()
    def decode(self, z: Tensor, seeds: object = None) -> Tensor:
        """Return spectrograms float32 (B, C, F, T) of normalised latents (B, *shape), on z's device.

        `seeds` are for codecs that draw noise; this one does not.

        Raises:
            ValueError: z does not have the shape of the run's latents.
        """
        require_shape("z", z, self.shape)
        with autocast(self.device, self.precision):
            parts = [
                self.vae.decode(part.to(self.device) * self.std + self.mean) for part in z.split(CODEC_BATCH)
            ]
        return torch.cat(parts).to(z.device)

    def to_audio(self, x0: Tensor) -> Tensor:
        """Decode x0 (N, C, F, T) at the training music's level; return (N, channels, L), about [-1, 1]."""
        return self.spectrogram.decode(x0)


def codec_record(run_dir: Path) -> dict[str, str]:
    """Return the name of an autoencoder's run and a hash of its weights and statistics.

    Raises:
        CheckpointError: the run has no weights, or its latents were never measured.
    """
    run = Run(run_dir)
    _read_statistics(run)
    content = run.weights_path().read_bytes() + _statistics_path(run).read_bytes()
    return {"run": run.name, "weights": hashlib.sha256(content).hexdigest()}


def vae_recipe(settings: Settings) -> Recipe:
    """Return the training recipe of an autoencoder, for the present number of processes."""
    vae, processes = settings.vae, process_state().num_processes
    samples_per_step = vae.train.batch_size * vae.train.on(processes).grad_accumulation * processes
    latent_shape = vae.network.latent_shape(settings.spectrogram.shape)
    return Recipe(
        parent=settings.models_dir / "vae",
        name=settings.preset,
        settings=settings,
        made_of=("spectrogram", *AUGMENTATION, "vae.network", "vae.loss", "vae.train", *BEGINNING),
        train=vae.train,
        build=functools.partial(first_network, settings),
        loss=VAELoss(vae.loss, latent_shape, samples_per_step, vae.train.seed),
        loaders=functools.partial(clip_loaders, settings, vae.train),
        dataset=functools.partial(music_record, settings),
        preview=functools.partial(save_vae_preview, settings),
        finish=functools.partial(save_latent_statistics, settings),
    )


def first_network(settings: Settings) -> TrainableVAE:
    """Return the network that training begins with: random weights, or those of the run `vae.start`.

    Raises:
        CheckpointError: there is no such run, or it lacks weights.
        ValueError: that run has another spectrogram or another network.
    """
    vae = settings.vae
    network = TrainableVAE(VAE(vae.network, settings.spectrogram.shape), vae.loss)
    if vae.start is None:
        return network
    run = Run(named_run(settings.models_dir, "vae", vae.start))
    same = {"spectrogram": INVERSE_ONLY, "vae.network": ()}
    begin_with(network, run, "vae.start", settings, same)  # a critic of another size begins anew
    network.vae.encoder.requires_grad_(not vae.freeze_encoder)
    return network


def train_vae(settings: Settings, run_dir: Path | None = None) -> Path:
    """Train an autoencoder on the settings' dataset and measure its latents; return its run folder.

    Arguments and errors are those of `Recipe.train`.
    """
    return train(vae_recipe(settings), run_dir)


@torch.no_grad()
def measure_latents(vae: VAE, dataset: SpectrogramDataset) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each latent channel over a split, float32 (channels,) each.

    The statistics are of the posterior means, pooled over clips and positions and summed in float64.
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


def save_latent_statistics(settings: Settings, run: Run, network: TrainableVAE) -> None:
    """Measure the latents of `network`, which has the newest EMA weights, and write latent-<step>.pth."""
    dataset = SpectrogramDataset(settings.dataset_dir, "train")
    mean, std = measure_latents(network.vae, dataset)
    save_checkpoint(_statistics_path(run), {"mean": mean, "std": std, "clips": len(dataset)})


def save_vae_preview(settings: Settings, run: Run, step: int, network: TrainableVAE) -> Shown:
    """Write reconstructions of the same validation clips and the loss curves to the run's results."""
    dataset = SpectrogramDataset(settings.dataset_dir, "validation")
    x0 = dataset.__getitems__(spread_indices(len(dataset), PREVIEW_CLIPS))[0]
    with torch.no_grad():
        device = next(network.parameters()).device
        reconstruction = network.vae.decode(network.vae.encode(x0.to(device)).mu).cpu()
    title = f"{run.name}: reconstructions after {step} steps"
    figure = plot_reconstructions(x0, reconstruction, settings.spectrogram, title)
    return save_preview_figures(run, "reconstructions", step, figure, plot_vae_metrics, reconstruction)


def find_vae(settings: Settings) -> Path:
    """Return the run of `settings.vae.run`: by name (`named_run`), or the newest.

    Raises:
        CheckpointError: "latest" is asked for and there is none.
    """
    if settings.vae.run != LATEST:
        return named_run(settings.models_dir, "vae", settings.vae.run)
    run = _newest(settings)
    if run is None:
        raise CheckpointError(
            f"there is no autoencoder in {settings.models_dir / 'vae'} for space='latent': train one first "
            "(Train VAE), or set space='spectrogram'"
        )
    return run.folder


def release_vae(run_dir: Path, folder: Path) -> None:
    """Write a run's newest weights and the statistics of its latents to `folder` (`Release.release`)."""
    for earlier in Path(folder).glob("latent-*.pth"):
        earlier.unlink()
    release(run_dir, folder, ("spectrogram", "vae", "phase.run"), also=("gain",))
    run = Run(run_dir)
    statistics = _statistics_path(run)
    save_checkpoint(Path(folder) / statistics.name, _read_statistics(run))


def _newest(settings: Settings, *, unheard: bool = False) -> Run | None:
    """Return the newest finished run, whose latents are measured; runs of earlier versions do not count.

    One that was trained on no test piece of the dataset comes first; with `unheard` no other will do.
    """
    parent, holding = settings.models_dir / "vae", "latent-*.pth"
    run = find_unheard(settings.dataset_dir, parent, holding, fits=lambda run: bool(run.conf))
    return run if run or unheard else find_run([parent], holding, fits=lambda run: bool(run.conf))


def _statistics_path(run: Run) -> Path:
    return run.folder / f"{run.weights_path().stem.replace('ema-', 'latent-')}.pth"


def _read_statistics(run: Run) -> dict[str, Tensor]:
    path = _statistics_path(run)
    if not path.exists():
        raise CheckpointError(
            f"{run.folder} has no {path.name}: its latents were never measured, which training does at its "
            "end; resume it: train_vae(settings, run_dir)"
        )
    return load_checkpoint(path)
