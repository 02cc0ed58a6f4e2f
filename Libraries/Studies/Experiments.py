"""Experiments: one changed setting against the best known one, with the same budget and several seeds.

Each training is stored under a hash of the settings that determine it, so experiments share trainings, an
interrupted experiment resumes, and a changed setting trains again.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from Libraries.Dataset.Manifest import INVERSE_ONLY, content_settings, load_manifest, pieces_of
from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Disk import write_array
from Libraries.Measures import POOL, Yardstick
from Libraries.Networks.Catalogue import parameters_of, scale_widths, width_for
from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.DiffusionTraining import diffusion_recipe
from Libraries.Runs.Leakage import require_separate
from Libraries.Runs.Preparation import ensure_dataset, load_split_clips, own_music
from Libraries.Runs.Recipe import open_run, train
from Libraries.Runs.Settings import Settings, changed, to_dict
from Libraries.Sound.Metrics import power_fraction_above
from Libraries.Sound.Stereo import downmix
from Libraries.Training.Checkpoint import save_json
from Libraries.Training.Loop import TrainingDiverged
from Libraries.Training.RunLog import read_metrics
from Libraries.Training.Timing import median_in_turns, training_step
from Libraries.Utils import get_logger, pick_device, require, spread_indices

logger = get_logger("Experiments")

EQUAL = ("parameters", "time")
# The settings that determine a training and its figures.
DECISIVE = ("demo_music", "spectrogram", "dataset", "space", "network", "diffusion", "train", "sampler")
KEPT_CLIPS = 4  # per training, for the picture
TIMED_STEPS = 10
UNMEASURED = {"measures": None, "highs": None, "clips": None}
OUTCOME = "measured.json"


@dataclass(frozen=True)
class Trials:
    """How the experiments run; the values live in `Journal.py`."""

    seeds: tuple[int, ...]  # one training per seed and variant
    clips: int  # generated per training to measure it
    names: tuple[str, ...]  # which run in the notebook's last cell; (): all


@dataclass(frozen=True)
class Change:
    """How one variant differs from the preset.

    Raises:
        ValueError: `equal` names something that cannot be made equal.
    """

    settings: dict[str, Any]  # "network.norm": "batch"
    equal: tuple[str, ...] = ()  # to the first variant: parameters (by scaling widths), time (by num_steps)

    def __post_init__(self):
        for what in self.equal:
            require(EQUAL, equal=what)


@dataclass(frozen=True)
class Experiment:
    """A claim of the journal and the variants that test it."""

    name: str  # of the files
    title: str
    journal: str  # what the journal did and thought, one sentence
    variants: dict[str, Change]  # the others are compared with the first


@dataclass(frozen=True)
class Planned:
    """One variant as it is trained."""

    changes: dict[str, Any]  # of the experiment, and the network or steps that equalise parameters or time
    seconds_per_step: float  # on this machine, with the variants timed in turn


@dataclass(frozen=True)
class Outcome:
    """The result of one training."""

    variant: str
    seed: int
    changes: dict[str, Any]
    seconds_per_step: float
    parameters: int
    num_steps: int
    diverged: bool
    measures: dict[str, Any] | None  # `Measures.summary` against the recordings; None: diverged
    highs: float | None  # dB, fraction of the power in the upper half band, relative to the recordings
    losses: dict[str, float]  # validation, by range of t
    curve: list[tuple[int, float]]  # (samples seen, training loss)
    clips: str | None  # file with a few waveforms (N, L), float16

    @property
    def distance(self) -> float | None:
        """The kernel distance to the recordings; None: diverged."""
        return self.measures and self.measures["kernel distance"]["value"]


@dataclass(frozen=True)
class Reference:
    """Recordings that generated clips are compared with."""

    yardstick: Yardstick
    highs: float  # dB, fraction of the power in the upper half of the band
    pieces: frozenset[str]  # of the validation split


def run_experiment(experiment: Experiment, settings: Settings, trials: Trials) -> list[Outcome]:
    """Train and measure every variant with every seed of `trials`; finished trainings are read.

    The diffusion is on spectrograms, as in the journal. To resume after an interruption, call this again.

    Returns:
        The outcomes, grouped by variant.

    Raises:
        ValueError: the settings diffuse in another space, or a variant changes the demo music, which is not
            in use.
        LeakageError: a variant with another split trains on pieces that it is measured on.
    """
    require(("spectrogram",), space=settings.space)
    ensure_dataset(settings)
    reference = functools.cache(functools.partial(load_reference, settings, trials.clips))
    todo = [
        (variant, seed, planned, changed(settings, {**planned.changes, "train.seed": seed}))
        for variant, planned in plan(experiment, settings).items()
        for seed in trials.seeds
    ]
    outcomes = []
    for variant, seed, planned, wanted in tqdm(todo, desc=experiment.name, unit="training"):
        wanted = with_own_dataset(settings, wanted)
        folder = _folder(wanted, seed, trials.clips)
        if not (folder / OUTCOME).exists():
            _train_and_measure(wanted, reference, trials.clips, folder)
        found = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
        outcomes.append(Outcome(variant=variant, seed=seed, **vars(planned), **found))
    return outcomes


def plan(experiment: Experiment, settings: Settings) -> dict[str, Planned]:
    """Return every variant with the network and steps that equalise parameters or time.

    Steps for equal time depend on the machine, so the first result is kept in a file and read from then on.
    """
    variants = experiment.variants
    made_of = [[_identity(changed(settings, c.settings)), c.equal] for c in variants.values()]
    path = settings.models_dir / "experiments" / f"plan-{experiment.name}-{_hash(made_of)}.json"
    if not path.exists():
        save_json(path, _budgets(variants, settings))
    budgets = json.loads(path.read_text(encoding="utf-8"))
    return {name: _planned(settings, change, **budgets[name]) for name, change in variants.items()}


def _budgets(variants: dict[str, Change], settings: Settings) -> dict[str, dict[str, float]]:
    """Return each variant's width, steps and seconds per step, for equal parameters or time."""
    first, *_ = variants
    goal, found = _parameters(changed(settings, variants[first].settings)), {}
    for name, change in variants.items():
        own, width = changed(settings, change.settings), 1.0
        if "parameters" in change.equal:
            width = width_for(own.network, own.spectrogram.shape[0], goal)
        found[name] = {"width": width, "num_steps": own.train.num_steps}
    seconds = _seconds_per_step(
        {
            name: changed(settings, _planned(settings, change, **found[name], seconds_per_step=0.0).changes)
            for name, change in variants.items()
        }
    )
    for name, change in variants.items():
        found[name]["seconds_per_step"] = seconds[name]
        if "time" in change.equal:
            steps = round(settings.train.num_steps * seconds[first] / seconds[name])
            found[name]["num_steps"] = max(1, steps)
    return found


def _planned(
    settings: Settings, change: Change, width: float, num_steps: int, seconds_per_step: float
) -> Planned:
    changes = dict(change.settings)
    if "parameters" in change.equal:
        network = scale_widths(changed(settings, changes).network, width)
        changes = {name: value for name, value in changes.items() if not name.startswith("network.")}
        changes["network"] = network
    if "time" in change.equal:
        changes["train.num_steps"] = num_steps
    return Planned(changes, seconds_per_step)


def load_reference(settings: Settings, clips: int) -> Reference:
    """Describe recordings of the validation split: what helps is chosen by them, not by the test split.

    They have not passed through the representation, so that what it loses counts against it.
    """
    real, training = (
        load_recordings(settings, split, count)
        for split, count in (("validation", clips), ("train", POOL * clips))
    )
    sources = SpectrogramDataset(settings.dataset_dir, "validation").sources
    pieces = [sources[index] for index in spread_indices(len(sources), clips)]
    yardstick = Yardstick(real, training, settings.spectrogram.sample_rate, pieces, seed=0)
    own = frozenset(pieces_of(load_manifest(settings.dataset_dir), "validation"))
    return Reference(yardstick, _highs(real, settings), own)


def load_recordings(settings: Settings, split: str, clips: int) -> Tensor:
    """Return recordings (N, channels, L) spread over a split, as long as generated clips are."""
    return load_split_clips(settings, split, clips)[..., : settings.spectrogram.kept_samples]


def by_variant(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Return the outcomes of each variant, in the order of the variants."""
    names = dict.fromkeys(outcome.variant for outcome in outcomes)
    return {name: [outcome for outcome in outcomes if outcome.variant == name] for name in names}


def load_sound(outcome: Outcome) -> Tensor | None:
    """Return the few waveforms (N, L) kept from a training; None if it diverged."""
    if outcome.clips is None:
        return None
    return torch.from_numpy(np.load(outcome.clips, allow_pickle=False).astype(np.float32))


def _train_and_measure(
    settings: Settings, reference: Callable[[], Reference], clips: int, folder: Path
) -> None:
    """Train, sample and measure; write OUTCOME last."""
    ensure_dataset(settings)
    training = pieces_of(load_manifest(settings.dataset_dir), "train")
    who = f"the variant with the dataset {settings.dataset.name}"
    require_separate(training, set(reference().pieces), who)
    recipe = replace(diffusion_recipe(settings), parent=folder, preview=None)
    run_dir = open_run(recipe, next(iter(sorted(folder.glob("0*"))), None)).folder
    try:
        train(recipe, run_dir)
        diverged = False
    except TrainingDiverged as error:
        logger.warning("%s: %s", folder.name, error)
        diverged = True
    metrics = read_metrics(run_dir / "metrics.csv")
    samples_per_step = settings.train.batch_size * settings.train.grad_accumulation
    found = {
        "parameters": _parameters(settings),
        "num_steps": settings.train.num_steps,
        "diverged": diverged,
        "losses": {
            key.removeprefix("val_loss_t"): value
            for row in metrics if "val_loss" in row
            for key, value in row.items() if key.startswith("val_loss_t")
        },
        "curve": [(row["step"] * samples_per_step, row["loss"]) for row in metrics if "loss" in row],
    }  # fmt: skip
    found |= UNMEASURED if diverged else _measure(settings, reference(), clips, run_dir)
    save_json(folder / OUTCOME, found)


def _measure(settings: Settings, reference: Reference, count: int, run_dir: Path) -> dict[str, Any]:
    """Sample the same seeds as every other training and compare them with the recordings."""
    model = DiffusionRun.load(run_dir)
    x0 = model.generate(
        range(count), settings.sampler, settings.evaluation.batch_size,
        labels=model.labels_in_turn(count), progress=False,
    )  # fmt: skip
    sound = model.to_audio(x0)
    clips = run_dir / "clips.npy"
    mono = downmix(sound[:KEPT_CLIPS])[:, 0]
    kept = mono / mono.abs().amax(1, keepdim=True).clamp(min=1e-9)
    write_array(clips, kept.numpy().astype(np.float16))
    return {
        "measures": reference.yardstick.measure(sound).summary(),
        "highs": _highs(sound, settings) - reference.highs,
        "clips": str(clips),
    }


def _highs(waveforms: Tensor, settings: Settings) -> float:
    """Return in dB the fraction of the power in the upper half of the band that the representation keeps."""
    spectrogram = settings.spectrogram
    return power_fraction_above(waveforms, spectrogram.sample_rate, spectrogram.max_frequency / 2)


def _seconds_per_step(variants: dict[str, Settings]) -> dict[str, float]:
    """Return the median seconds per training step of each variant, timed in turn on the same machine."""
    recipes = {name: diffusion_recipe(own) for name, own in variants.items()}
    steps = {
        name: training_step(recipe.network(), recipe.loss, recipe.train, variants[name].spectrogram.shape)
        for name, recipe in recipes.items()
    }
    return median_in_turns(steps, TIMED_STEPS, pick_device(), warm_ups=2)


def _parameters(settings: Settings) -> int:
    return parameters_of(settings.network, settings.spectrogram.shape[0])


def with_own_dataset(base: Settings, wanted: Settings) -> Settings:
    """Return the settings of a variant with a dataset, and demo music, of its own if they are not the base's.

    Raises:
        ValueError: the demo music differs, but the music is the user's own.
    """
    if wanted.demo_music != base.demo_music:
        if own := own_music(base):
            raise ValueError(f"a variant changes demo_music, but the music is your own, in {own}")
        wanted = replace(wanted, preset=f"{wanted.preset}-{_hash(to_dict(wanted.demo_music))}")
    return replace(wanted, dataset=replace(wanted.dataset, name=_dataset_name(base, wanted)))


def _dataset_name(base: Settings, wanted: Settings) -> str:
    """Return the name of the dataset, with a hash of each part that decides its content otherwise."""
    parts = zip(_content_of(base), _content_of(wanted), strict=True)
    return "-".join([wanted.dataset.name, *(_hash(theirs) for ours, theirs in parts if ours != theirs)])


def _content_of(settings: Settings) -> tuple[dict[str, Any], ...]:
    """Return the settings that decide the rows of the dataset, which clips they are, and of which music."""
    encoding = {k: v for k, v in to_dict(settings.spectrogram).items() if k not in INVERSE_ONLY}
    clips = content_settings(settings.spectrogram, settings.dataset)["dataset"]
    return encoding, clips, to_dict(settings.demo_music)


def _folder(settings: Settings, seed: int, clips: int) -> Path:
    key = _hash([_identity(settings), clips])
    return settings.models_dir / "experiments" / f"{settings.preset}-seed{seed}-{key}"


def _identity(settings: Settings) -> dict[str, Any]:
    values = to_dict(settings)
    decisive = {name: values[name] for name in DECISIVE}
    for how in ("num_workers", "executor", "one_file_clips"):  # a dataset is built does not decide its clips
        decisive["dataset"].pop(how)
    if settings.encode_once:
        decisive["encode_once"] = True
    return {**decisive, "music_dir": values["music_dir"]}


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
