"""From settings and a dataset to a trained diffusion run."""

import functools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from Libraries.Dataset.Manifest import INVERSE_ONLY, load_manifest, manifest_hash
from Libraries.Diffusion import NoiseSchedule
from Libraries.Plots.CurvePlots import plot_metrics
from Libraries.Plots.SpectrogramPlots import plot_tensors
from Libraries.Runs.Codec import Codec
from Libraries.Runs.DiffusionRun import DiffusionRun, guide_step
from Libraries.Runs.LatentDataset import build_latents
from Libraries.Runs.Recipe import (
    AUGMENTATION,
    Recipe,
    begin_with,
    clip_loaders,
    music_record,
    save_preview_figures,
    train,
)
from Libraries.Runs.Release import release
from Libraries.Runs.Run import Run, named_run
from Libraries.Runs.Settings import Settings
from Libraries.Runs.Spaces import open_codec
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Training.ConsistencyLoss import ConsistencyLoss
from Libraries.Training.DiffusionLoss import DiffusionLoss
from Libraries.Training.DiffusionNetwork import make_diffusion_network
from Libraries.Training.Tracker import Shown
from Libraries.Utils import pick_device

PREVIEW_SEEDS = range(8)
MADE_OF = ("spectrogram", *AUGMENTATION, "diffusion", "space", "network", "train", "start")
# what may differ from the run that training begins with
OF_CLASSES = ("num_classes", "dropout")
OF_TRAINING = (
    "label_dropout", "vlb_weight", "timestep_sampling", "log_normal_mean", "log_normal_std", "loss_weighting",
    "min_snr_gamma", "objective", "consistency_ratio", "consistency_stage_clips",
)  # fmt: skip
ROWS, BIAS = "embed_class.weight", "embed_time.mlp.2.bias"  # of labels and of time, which are added


def diffusion_recipe(settings: Settings, codec: Codec | None = None) -> Recipe:
    """Return the training recipe of a diffusion model.

    Args:
        codec: the codec of the settings; None opens it (`open_codec`).

    Raises:
        ValueError: `sigma_data` is not that of latents, consistency tuning has no `start`, or as
            `open_codec`.
        CheckpointError: as `open_codec`.
    """
    codec = codec or open_codec(settings)
    require_sigma_data(settings)
    if settings.diffusion.objective == "consistency" and settings.start is None:
        raise ValueError("objective='consistency' tunes a trained diffusion: set start to its run")
    return Recipe(
        parent=settings.models_dir / "diffusion",
        name=settings.preset,
        settings=settings,
        made_of=(*MADE_OF, *codec.made_of),
        train=settings.train,
        build=functools.partial(first_network, settings, codec),
        loss=diffusion_training_loss(settings),
        loaders=functools.partial(diffusion_loaders, settings, codec),
        dataset=functools.partial(diffusion_record, settings, codec),
        requires=codec.requires,
        preview=functools.partial(save_preview, settings, codec),
    )


def diffusion_training_loss(settings: Settings) -> DiffusionLoss:
    """Return the loss of the configured objective."""
    schedule, seed = NoiseSchedule(settings.diffusion), settings.train.seed
    if settings.diffusion.objective == "denoising":
        return DiffusionLoss(schedule, seed, settings.network.num_classes)
    data_std = 1.0 if settings.space == "latent" else settings.diffusion.sigma_data
    return ConsistencyLoss(schedule, seed, settings.network.num_classes, data_std)


def first_network(settings: Settings, codec: Codec) -> nn.Module:
    """Return the network that training begins with: random weights, or those of the run `settings.start`.

    Raises:
        CheckpointError: there is no such run, or it lacks weights.
        ValueError: that run has another spectrogram, space or network, or latents of another autoencoder.
    """
    network = make_diffusion_network(settings.network, settings.diffusion, codec.shape)
    if settings.start is None:
        return network
    run = Run(named_run(settings.models_dir, "diffusion", settings.start))
    same = {"spectrogram": INVERSE_ONLY, "space": (), "network": OF_CLASSES, "diffusion": OF_TRAINING}
    adapt = functools.partial(
        for_classes, network=network, theirs=run.conf["classes"], ours=_classes(settings)
    )
    begin_with(network, run, "start", settings, same, adapt)
    if (theirs := run.conf["requires"].get("run")) not in _autoencoders(codec):
        raise ValueError(
            f"{run.name}, with which start begins, was trained in the latents of {theirs}, and this "
            "autoencoder did not begin with it: set start=None, or vae.start to that name"
        )
    return network


def for_classes(
    weights: dict[str, Tensor], network: nn.Module, theirs: list[str], ours: list[str]
) -> dict[str, Tensor]:
    """Return a run's weights for the same network with other classes.

    A class of the same name keeps its row of the label embedding, and a new one begins as "no label" did. A
    network without classes gets "no label" once and for all, in the bias of its time embedding.

    Args:
        theirs, ours: names of the classes of the run's dataset and of this one.

    Raises:
        ValueError: the run has classes and this network has not, nor a bias to take "no label".
    """
    weights, own = dict(weights), network.state_dict()
    rows = weights.pop(_key(weights, ROWS), None)
    if (name := _key(own, ROWS)) is None:
        if rows is not None and (bias := _key(weights, BIAS)) is None:
            raise ValueError("start has classes, without which this network cannot begin: set num_classes")
        return weights if rows is None else weights | {bias: weights[bias] + rows[-1]}
    known = {} if rows is None else dict(zip(theirs, rows, strict=False))
    no_label = torch.zeros_like(own[name][-1]) if rows is None else rows[-1]
    begun = [
        known.get(ours[label] if label < len(ours) else None, no_label) for label in range(len(own[name]))
    ]
    return weights | {name: torch.stack(begun)}


def _key(weights: dict[str, Tensor], ending: str) -> str | None:
    """Return the name that ends so; learned loss weights put another in front of it."""
    return next((name for name in weights if name.endswith(ending)), None)


def _classes(settings: Settings) -> list[str]:
    return load_manifest(settings.dataset_dir)["classes"] if settings.network.num_classes else []


def _autoencoders(codec: Codec) -> tuple[str | None, ...]:
    """Return the names of the codec's own autoencoder and of that with which its training began."""
    if "run" not in codec.requires:
        return (None,)
    return codec.requires["run"], Run(codec.run_dir).conf["settings"]["vae"].get("start")


def train_diffusion(settings: Settings, run_dir: Path | None = None) -> Path:
    """Train a diffusion model on the dataset of these settings; return its run folder.

    Args:
        run_dir: an interrupted run to resume; None starts a new one.

    Raises:
        ValueError: the dataset has more classes than the network or another spectrogram, or the run was made
            with other settings or another autoencoder.
        CheckpointError: `run_dir` is not a run, or the autoencoder cannot be used.
    """
    return train(diffusion_recipe(settings), run_dir)


def release_diffusion(run_dir: Path, folder: Path) -> None:
    """Write a run's newest weights, those of its guide model and all its settings (`Release.release`)."""
    run = Run(run_dir)
    guidance = run.settings.guidance
    guide = guide_step(run.folder, guidance.guide_at) if guidance.method == "autoguidance" else None
    release(run_dir, folder, run.conf["settings"], ("requires", "gain", "classes"), guide)


def diffusion_record(settings: Settings, codec: Codec) -> dict[str, Any]:
    """Return `music_record`, and the hash of the latents if they are encoded once.

    Raises:
        ValueError: the dataset has more classes than the network.
    """
    record = music_record(settings)
    require_classes(settings.network.num_classes, record["classes"])
    if settings.encode_once:
        record["dataset"]["latents"] = manifest_hash(build_latents(settings, codec).folder)
    return record


class EncodedLoader:
    """The batches of a loader, with spectrograms encoded by the codec on the fly."""

    def __init__(self, loader: Iterable, codec: Codec):
        self.loader, self.codec = loader, codec

    def __iter__(self):
        for x0, label in self.loader:
            yield self.codec.encode(x0), label


def diffusion_loaders(settings: Settings, codec: Codec, **options) -> tuple[Iterable, Iterable]:
    """Return the endless training loader and the validation loader of a diffusion, encoded by its codec.

    With `settings.encode_once`, clips are encoded before, all at once and as they are, not augmented.
    `options` are those of `make_loaders`.
    """
    if settings.encode_once:
        latents = build_latents(settings, codec).folder
        return clip_loaders(settings, settings.train, latents=latents, **options)
    train, validation = clip_loaders(settings, settings.train, **options)
    return EncodedLoader(train, codec), EncodedLoader(validation, codec)


def require_classes(num_classes: int, classes: list[str]) -> None:
    """Raise a ValueError if a network with classes has fewer than the dataset."""
    if 0 < num_classes < len(classes):
        raise ValueError(
            f"num_classes={num_classes}, but the dataset has {len(classes)} classes: {', '.join(classes)}; "
            "set num_classes to that number or to 0"
        )


def require_sigma_data(settings: Settings) -> None:
    """Raise a ValueError if the edm prediction is set to another standard deviation than latents have."""
    diffusion = settings.diffusion
    if settings.space == "latent" and diffusion.prediction_type == "edm" and diffusion.sigma_data != 1:
        raise ValueError(
            f"sigma_data={diffusion.sigma_data} of the diffusion must be 1.0 in latents of unit variance"
        )


def overfit_one_batch(settings: Settings, num_steps: int) -> list[float]:
    """Train a fresh network on one batch with new noise in every step; return the mean loss of each step.

    Run this check before a long training: if the loss falls, data, network and loss fit together.
    """
    recipe, train = diffusion_recipe(settings), settings.train
    network, B = recipe.network().train().to(pick_device()), train.batch_size
    loader, _ = recipe.loaders(batch_size=B, seed=train.seed)
    batch = next(iter(loader))
    optimizer = torch.optim.AdamW(network.parameters(), lr=train.learning_rate)
    losses = []
    for step in tqdm(range(num_steps), desc="overfitting one batch", unit="step"):
        loss = recipe.loss(network, batch, torch.arange(step * B, (step + 1) * B)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def save_preview(settings: Settings, codec: Codec, run: Run, step: int, network: nn.Module) -> Shown:
    """Write samples of the same seeds and the loss curves to the run's results."""
    device = next(network.parameters()).device
    spectrogram = Spectrogram(settings.spectrogram)
    model = DiffusionRun(network, NoiseSchedule(settings.diffusion), spectrogram, codec, device)
    quick = replace(settings.sampler, num_inference_steps=min(20, settings.sampler.num_inference_steps))
    x0 = model.generate(PREVIEW_SEEDS, quick, batch_size=len(PREVIEW_SEEDS), progress=False)
    titles = [f"seed {seed}" for seed in PREVIEW_SEEDS]
    figure = plot_tensors(x0, titles, settings.spectrogram, f"{run.name}: samples after {step} steps")
    return save_preview_figures(run, "samples", step, figure, plot_metrics, x0)
