"""A run under examination: everything that the rules read, each part read or made when first asked for."""

import time
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from Libraries.Dataset.Manifest import DatasetError, clips_of, load_manifest, manifest_hash, pads_short
from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset, read_clip
from Libraries.Diffusion import NoiseSchedule
from Libraries.Runs.Autoencoding import LatentCodec, vae_recipe
from Libraries.Runs.Codec import Codec
from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.DiffusionTraining import diffusion_recipe
from Libraries.Runs.Recipe import Recipe
from Libraries.Runs.Run import RELEASED, Run
from Libraries.Runs.Settings import Settings, music_folder
from Libraries.Runs.Spaces import open_codec
from Libraries.Runs.Upsampling import upsampler_recipe
from Libraries.Sampling.Loop import SamplerConfig
from Libraries.Training.Checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, load_weights
from Libraries.Training.RunLog import read_metrics
from Libraries.Training.TrainConfig import TrainConfig
from Libraries.Utils import pick_device, spread_indices

KINDS = {"diffusion": "train", "vae": "vae.train", "upsampler": "upsampler.train", "phase": "phase.train"}
"""Every kind of run, and which part of the settings trained it."""

RECORDINGS = 64  # of clips, read from the music
CLIPS = 32  # of a split: enough for means, and read in a moment
SEARCHED = 2048  # training clips among which copies are looked for
SAMPLES, FEWEST_SAMPLES = 16, 4  # generated clips
SAMPLING_SECONDS = 60.0  # so that a big model on a CPU does not take an hour; it then gives fewer samples
BATCH = 16  # clips in one pass of the network


class CannotLook(Exception):
    """What a rule reads is not there; the message says what, in words that follow a colon."""


@dataclass(frozen=True)
class Finding:
    """A mistake that a rule has found."""

    sentence: str  # the mistake with its evidence, no full stop
    advice: str  # what to change, no full stop
    evidence: dict[str, float] = field(default_factory=dict)
    rule: str = ""  # the name of the rule, set by `doctor`

    def named(self, rule: str) -> "Finding":
        """Return the finding with the name of its rule."""
        return replace(self, rule=rule)

    def __str__(self) -> str:
        return f"{self.rule}: {self.sentence}: {self.advice}."


class Case:
    """A run with its settings, metrics, weights, data and samples.

    Args:
        run_dir: `Models/<kind>/<run>`.
        device: where networks run; None picks the best one.

    Raises:
        CheckpointError: the folder is not a run, or is from an earlier version.
        CannotLook: (any part) what the part is read from is not there.
    """

    def __init__(self, run_dir: Path, device: torch.device | None = None):
        self.run, self.device = Run(run_dir), device or pick_device()
        self.kind = self._kind()
        self.train: TrainConfig = self.run.config(KINDS[self.kind])
        self.sampled: dict[SamplerConfig, Tensor] = {}  # the same seeds by several samplers

    @cached_property
    def settings(self) -> Settings:
        """All settings of the run; of what was released there are a few parts alone."""
        return self.run.settings

    def _kind(self) -> str:
        """Return the kind: by the folder, or of a released model by its settings.

        Experiments train diffusions.
        """
        parent = self.run.folder.parent
        if parent == RELEASED:
            own = {"network": "diffusion", "vae": "vae", "phase": "phase"}  # a diffusion has all of them
            return next(kind for part, kind in own.items() if part in self.run.conf["settings"])
        return parent.name if parent.name in KINDS else "diffusion"

    @cached_property
    def training_rows(self) -> list[dict[str, float]]:
        """The rows of metrics.csv with the training loss, and the learning rate and gradient norm there."""
        return [row for row in self._rows if "loss" in row]

    @cached_property
    def validation_rows(self) -> list[dict[str, float]]:
        """The rows of metrics.csv with the loss on validation clips."""
        return [row for row in self._rows if "val_loss" in row]

    @cached_property
    def _rows(self) -> list[dict[str, float]]:
        path = self.run.folder / "metrics.csv"
        if not path.exists():
            raise CannotLook(f"{path} is not there")
        return read_metrics(path)

    @cached_property
    def step(self) -> int:
        """The last optimiser step in metrics.csv."""
        if not self.training_rows:
            raise CannotLook("nothing has been logged yet")
        return self.training_rows[-1]["step"]

    @property
    def final_loss(self) -> float:
        """The last loss on validation clips."""
        if not self.validation_rows:
            raise CannotLook("there is no validation loss")
        return self.validation_rows[-1]["val_loss"]

    @cached_property
    def state(self) -> dict:
        """The newest state-<step>.pth, with the weights, their EMA and the gradient scaler of fp16."""
        return load_checkpoint(latest_checkpoint(self.run.folder, "state"))

    @cached_property
    def manifest(self) -> dict:
        """The manifest of the dataset that the run was trained on."""
        folder = self.settings.dataset_dir
        manifest = load_manifest(folder)
        if manifest_hash(folder) != self.run.conf["dataset"]["hash"]:
            raise CannotLook(f"{folder} holds another dataset than the one that the run was trained on")
        return manifest

    def dataset(self, split: str) -> SpectrogramDataset:
        """Return a split of the run's dataset."""
        self.manifest  # noqa: B018 - raises if it is another
        dataset = SpectrogramDataset(self.settings.dataset_dir, split)
        if not len(dataset):
            raise CannotLook(f"the {split} split has no clips")
        return dataset

    @lru_cache  # noqa: B019 - a case lives as long as its examination
    def labelled(self, split: str, count: int = CLIPS) -> tuple[Tensor, Tensor]:
        """Return clips spread over a split: x0 (N, C, F, T) and labels (N,)."""
        dataset = self.dataset(split)
        return dataset.__getitems__(spread_indices(len(dataset), count))

    def clips(self, split: str, count: int = CLIPS) -> Tensor:
        """Return clips spread over a split: x0 (N, C, F, T)."""
        return self.labelled(split, count)[0]

    @cached_property
    def held_out(self) -> Tensor:
        """Clips that training has not seen, half validation and half test: x0 (N, C, F, T)."""
        return torch.cat([self.clips(split, CLIPS // 2) for split in ("validation", "test")])

    @cached_property
    def recordings(self) -> Tensor:
        """Recordings of clips of the training split as they are in the music: (N, channels, L)."""
        settings = self.settings
        folder = music_folder(settings)
        if not folder.is_dir():
            raise CannotLook(f"the music is not in {folder}")
        clips = clips_of(self.manifest, "train")
        chosen = [clips[i] for i in spread_indices(len(clips), RECORDINGS)]
        pad_short = pads_short(self.manifest)
        return torch.stack([read_clip(clip, folder, settings.spectrogram, pad_short) for clip in chosen])

    @cached_property
    def codec(self) -> Codec:
        """What the diffusion's data are encoded by; of an autoencoder's run, the autoencoder itself."""
        if self.kind == "vae":
            return LatentCodec.load(self.run.folder, self.device)
        if self.kind != "diffusion":
            raise CannotLook("only a diffusion and an autoencoder encode their data")
        return open_codec(self.settings, self.device, self.run.conf["requires"])

    @cached_property
    def encoded(self) -> Tensor:
        """Training clips as the diffusion sees them, (N, C', F', T')."""
        return self.codec.encode(self.clips("train"))

    @cached_property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule of the run."""
        return NoiseSchedule(self.settings.diffusion)

    @cached_property
    def recipe(self) -> Recipe:
        """How the run was trained: its loss, and its network as it was at first."""
        if self.kind == "vae":
            return vae_recipe(self.settings)
        if self.kind == "upsampler":
            return upsampler_recipe(self.settings)
        if self.kind == "phase":
            raise CannotLook("the loss of a phase network needs the music that it was trained on")
        return diffusion_recipe(self.settings, self.codec)

    @cached_property
    def moved(self) -> float:
        """How far training moved the weights, as a fraction of their first length."""
        return self._distance(self._first, self.state["model"])

    @cached_property
    def ema_moved(self) -> float:
        """How far the EMA is from the first weights, in the same unit."""
        return self._distance(self._first, self._ema)

    @cached_property
    def ema_lag(self) -> float:
        """How far the EMA is from the last weights, in the same unit."""
        return self._distance(self.state["model"], self._ema)

    @property
    def updates(self) -> int:
        """How often the EMA was updated: once a step, but for steps that fp16 skipped."""
        return int(self.state["ema"]["n_averaged"])

    @cached_property
    def _ema(self) -> dict[str, Tensor]:
        ema = self.state["ema"]
        return {name.removeprefix("module."): w for name, w in ema.items() if name != "n_averaged"}

    @cached_property
    def _first(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self.recipe.network().named_parameters()}

    def _distance(self, a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
        squares = sum((a[name] - b[name]).double().square().sum() for name in self._first)
        length = sum(weight.double().square().sum() for weight in self._first.values())
        return (squares / length).sqrt().item()

    def network(self, weights: dict[str, Tensor]) -> nn.Module:
        """Return the network that was trained with these weights, in evaluation mode."""
        network = self.recipe.network()
        load_weights(network, weights, self.run.folder)
        return network.to(self.device).eval()

    def loss(self, weights: dict[str, Tensor], split: str) -> float:
        """Return the loss of weights on clips of a split, with the same noise for both splits."""
        x0, labels = self.labelled(split)
        encoded = self.codec.encode(x0) if self.kind == "diffusion" else x0
        batches = list(zip(encoded.split(BATCH), labels.split(BATCH), strict=True))
        return self.recipe.loss.validate(self.network(weights), batches)["val_loss"]

    @cached_property
    def model(self) -> DiffusionRun:
        """The run with its EMA weights, ready to sample."""
        return DiffusionRun.load(self.run.folder, self.device)

    def sample(self, sampler: SamplerConfig, count: int) -> Tensor:
        """Generate clips of seeds 0, 1, ...: x0 (count, C, F, T)."""
        labels = self.model.labels_in_turn(count)
        return self.model.generate(range(count), sampler, BATCH, labels=labels, progress=False)

    @cached_property
    def samples(self) -> Tensor:
        """Clips that the run generates with its own sampler, x0 (N, C, F, T): 16, or fewer if it is slow."""
        sampler = self.settings.sampler
        count = self.affordable(sampler.num_inference_steps, SAMPLES)
        return self.sample(sampler, count)

    def require_denoising(self) -> None:
        """Raise a CannotLook if the network was tuned for few steps: then its loss and path say little."""
        if self.settings.diffusion.objective == "consistency":
            raise CannotLook("consistency tuning has a loss without a level, and samplers without a path")

    def affordable(self, steps: int, count: int) -> int:
        """Return how many of `count` clips can be sampled in a minute with so many network passes each."""
        affordable = int(SAMPLING_SECONDS / (steps * self._seconds_per_pass))
        if affordable < FEWEST_SAMPLES:
            minutes = FEWEST_SAMPLES * steps * self._seconds_per_pass / 60
            raise CannotLook(f"{FEWEST_SAMPLES} samples would take {minutes:.0f} minutes on this machine")
        return min(count, affordable)

    @cached_property
    def _seconds_per_pass(self) -> float:
        one = replace(self.settings.sampler, num_inference_steps=1)
        self.sample(one, 1)  # the first pass also prepares
        start = time.perf_counter()
        self.sample(one, 1)
        return time.perf_counter() - start

    @cached_property
    def sound(self) -> dict[str, Tensor]:
        """Waveforms (N, C, L) by one decoder: "samples", as many "held_out" and "train" clips, "noise"."""
        count = len(self.samples)
        decoded_noise = self.model.decode(torch.randn(count, *self.model.shape, generator=_seeded()))
        held_out = self.held_out[spread_indices(len(self.held_out), count)]
        sets = {"samples": self.samples, "held_out": held_out, "train": self.clips("train")[:count]}
        return {name: self.model.to_audio(x0) for name, x0 in {**sets, "noise": decoded_noise}.items()}


UNREADABLE = (CannotLook, CheckpointError, DatasetError, OSError)
"""What a part raises where it cannot be read."""


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
