"""A diffusion model as a whole: settings and dataset -> trained run -> new music."""

import contextlib
import functools
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from Libraries.Checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, load_weights, save_json
from Libraries.Dataset import make_loaders
from Libraries.DatasetManifest import INVERSE_ONLY, load_manifest, manifest_hash
from Libraries.Diffusion import DiffusionConfig, NoiseSchedule
from Libraries.Objective import DiffusionObjective
from Libraries.Plots import plot_metrics, plot_tensors, save_figure
from Libraries.RunLog import read_metrics
from Libraries.Samplers import Callback, SamplerConfig, sample
from Libraries.Settings import Settings, from_dict, provenance, to_dict
from Libraries.Spectrogram import Gain, Spectrogram
from Libraries.SpectrogramConfig import SpectrogramConfig
from Libraries.Training import fit, process_state, resolve_precision
from Libraries.U_Net import UNet, UNetConfig
from Libraries.Utils import new_run_dir, pick_device, spread_indices

PREVIEW_SEEDS = range(8)


class Generator:
    """A trained run that makes music: network with EMA weights, schedule, spectrogram, typical gain."""

    def __init__(
        self, network: UNet, schedule: NoiseSchedule, spectrogram: Spectrogram, device: torch.device
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
        conf = _read_conf(run_dir)
        settings = conf["settings"]
        spectrogram_config = from_dict(SpectrogramConfig, settings["spectrogram"])
        network = UNet(from_dict(UNetConfig, settings["unet"]), spectrogram_config.shape[0])
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


def build_network(settings: Settings) -> UNet:
    """Return a freshly initialised network of these settings: the same weights for the same seed."""
    with torch.random.fork_rng([]):
        torch.manual_seed(settings.train.seed)
        return UNet(settings.unet, settings.spectrogram.shape[0])


def make_objective(settings: Settings) -> DiffusionObjective:
    """Return the diffusion loss of these settings."""
    schedule = NoiseSchedule(settings.diffusion)
    return DiffusionObjective(schedule, settings.train.seed, num_classes=settings.unet.num_classes)


def diffusion_loaders(settings: Settings, **options) -> tuple[DataLoader, DataLoader]:
    """Return the endless training loader and `num_validation_clips` clips spread over the validation split.

    `options` are those of `make_loaders`.
    """
    train, validation = make_loaders(settings.dataset_dir, augment=settings.dataset, **options)
    spread = spread_indices(len(validation.dataset), settings.num_validation_clips)
    subset = Subset(validation.dataset, spread)
    return train, DataLoader(subset, batch_size=validation.batch_size, collate_fn=validation.collate_fn)


def train_diffusion(settings: Settings, run_dir: Path | None = None) -> Path:
    """Train a diffusion model on the dataset of these settings; return its run folder.

    Args:
        settings: of the whole; they are written to the run's conf.json.
        run_dir: an interrupted run to go on with; None starts a new one.

    Raises:
        ValueError: the dataset was built with another spectrogram, or the run with other settings.
        CheckpointError: `run_dir` is no run.
    """
    manifest = load_manifest(settings.dataset_dir)
    conf = {
        "settings": to_dict(settings),
        "dataset": {"folder": str(settings.dataset_dir), "hash": manifest_hash(settings.dataset_dir)},
        "gain": manifest["gain"],
        "classes": manifest["classes"],
        "provenance": provenance(),
    }
    _require_same(
        "the dataset", manifest["settings"]["spectrogram"], to_dict(settings.spectrogram), INVERSE_ONLY
    )
    run_dir = _claim_run(settings, conf) if run_dir is None else _continue_run(run_dir, conf)
    fit(
        build_network(settings),
        make_objective(settings),
        functools.partial(diffusion_loaders, settings),
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
    loader, _ = diffusion_loaders(settings, batch_size=settings.train.batch_size, seed=settings.train.seed)
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


def save_preview(settings: Settings, run_dir: Path, step: int, network: UNet) -> None:
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


def results_of(settings: Settings, run_dir: Path) -> Path:
    """Return the results folder of a run."""
    return settings.results_dir / run_dir.parent.name / run_dir.name


def _claim_run(settings: Settings, conf: dict) -> Path:
    """Make a new run folder with its conf.json; all processes of a launch share the one made by the first."""
    state, run_dir = process_state(), [None]
    if state.is_main_process:
        run_dir = [new_run_dir(settings.models_dir, settings.preset)]
        save_json(run_dir[0] / "conf.json", conf)
    if state.num_processes > 1:
        broadcast_object_list(run_dir)
    return run_dir[0]


def _read_conf(run_dir: Path) -> dict:
    """Return what a run's conf.json holds; a CheckpointError says that a folder is no run."""
    path = Path(run_dir) / "conf.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        reason = (
            f"{path} cannot be read ({error}): name a run's own folder, such as Models/diffusion/00000-BASE"
        )
        raise CheckpointError(reason) from None


def _continue_run(run_dir: Path, conf: dict) -> Path:
    known = _read_conf(run_dir)
    for part in ("spectrogram", "unet", "diffusion", "train"):
        _require_same(f"the run {run_dir.name}", known["settings"][part], conf["settings"][part])
    if known["dataset"]["hash"] != conf["dataset"]["hash"]:
        raise ValueError(
            f"{run_dir.name} was trained on another dataset than {conf['dataset']['folder']} is now"
        )
    return run_dir


def _require_same(owner: str, theirs: dict, ours: dict, ignored: tuple[str, ...] = ()) -> None:
    """Raise a ValueError that names the settings in which two parts differ."""
    theirs, ours = (json.loads(json.dumps(part)) for part in (theirs, ours))  # tuples are lists in JSON
    names = (theirs.keys() | ours.keys()) - set(ignored)
    different = [f"{name} is {theirs.get(name)} there and {ours.get(name)} here"
                 for name in sorted(names) if theirs.get(name) != ours.get(name)]  # fmt: skip
    if different:
        raise ValueError(f"{owner} has other settings ({'; '.join(different)}): use those, or make a new one")
