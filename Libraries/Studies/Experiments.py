"""Experiments: one changed setting against what is best known, under one budget, with several seeds.

A training is kept under the settings that decide it, so experiments share what they have in common, an
interrupted one goes on, and a changed setting trains anew.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from Libraries.Dataset.Manifest import INVERSE_ONLY
from Libraries.Evaluation.Samples import distances
from Libraries.Networks.Catalogue import parameters_of, width_for
from Libraries.Networks.JournalUNet import JournalUNetConfig, as_journal
from Libraries.Runs.Generator import Generator
from Libraries.Runs.Pipeline import build_network, fit_diffusion, make_loss
from Libraries.Runs.Preparation import ensure_dataset, load_split_clips
from Libraries.Runs.Run import open_run
from Libraries.Runs.Settings import Settings, to_dict
from Libraries.Sound.Metrics import power_share_above
from Libraries.Training.Checkpoint import save_json
from Libraries.Training.Loop import TrainingDiverged
from Libraries.Training.RunLog import read_metrics
from Libraries.Training.Timing import median_in_turns, training_step
from Libraries.U_Net import UNetConfig
from Libraries.Utils import get_logger, pick_device, write_then_rename

logger = get_logger("Experiments")

EQUAL = ("parameters", "time")
# What a training and its figures hang on; the rest of the settings is about other things.
DECISIVE = (
    *("demo_music", "spectrogram", "dataset", "network", "network_width", "unet", "diffusion", "train"),
    *("sampler", "num_validation_clips"),
)
KEPT_CLIPS = 4  # of every training, for the picture
TIMED_STEPS = 10
UNMEASURED = {"distance": None, "highs": None, "clips": None}


@dataclass(frozen=True)
class Change:
    """What one variant has different from the preset.

    Raises:
        ValueError: something is to be equal that cannot be made so.
    """

    settings: dict[str, Any]  # "unet.norm": "batch"
    equal: tuple[str, ...] = ()  # to the first variant: parameters (by network_width), time (by num_steps)

    def __post_init__(self):
        if unknown := set(self.equal) - set(EQUAL):
            raise ValueError(f"equal={sorted(unknown)} is unknown; choose of {', '.join(EQUAL)}")


@dataclass(frozen=True)
class Experiment:
    """A guess of the journal and the variants that put it to the test."""

    name: str  # of its files
    title: str
    journal: str  # what the journal did and thought, one sentence
    variants: dict[str, Change]  # the others are compared with the first


@dataclass(frozen=True)
class Planned:
    """One variant as it is trained."""

    changes: dict[str, Any]  # of the experiment, and the width or steps that make equal what is to be equal
    seconds_a_step: float  # on this machine, all variants in turns


@dataclass(frozen=True)
class Outcome:
    """What came of one training."""

    variant: str
    seed: int
    changes: dict[str, Any]
    seconds_a_step: float
    parameters: int
    num_steps: int
    diverged: bool
    distance: float | None  # log-mel Frechet distance to the test recordings; None: diverged
    highs: float | None  # dB, share of the power in the upper half of the band, against the recordings'
    losses: dict[str, float]  # validation, by range of t
    curve: list[tuple[int, float]]  # (samples seen, training loss)
    clips: str | None  # file with a few waveforms (N, L), float16


@dataclass(frozen=True)
class Reference:
    """Recordings that generated clips are held against."""

    test: Tensor  # (N, 1, L)
    floor: float  # distance of as many training recordings
    highs: float  # dB, share of the power in the upper half of the band


def changed(settings: Settings, changes: dict[str, Any]) -> Settings:
    """Return the settings with others in the places named, as `{"unet.norm": "batch", "network_width": 2}`.

    A change of what only the journal's networks can vary turns a plain network into the equal one of theirs.

    Raises:
        ValueError: there is no such setting, or the changed ones do not fit together.
    """
    parts: dict[str, Any] = {}
    for name, value in changes.items():
        part, _, field = name.partition(".")
        _require_field(settings, part, name)
        if field:
            _require_field(_varied(getattr(settings, part), {field}), field, name)
            parts.setdefault(part, {})[field] = value
        else:
            parts[part] = value
    for part, values in parts.items():
        if isinstance(values, dict):
            parts[part] = replace(_varied(getattr(settings, part), set(values)), **values)
    return replace(settings, **parts)


def run_experiment(experiment: Experiment, settings: Settings) -> list[Outcome]:
    """Train and measure every variant with every seed of `settings.experiments`; what is done is read.

    Diffusion is on spectrograms, whatever `vae_run` says: the journal's was. Interrupt it at will and call it
    again.

    Returns:
        The outcomes, those of one variant next to one another.
    """
    base = replace(settings, vae_run=None)
    ensure_dataset(base)
    reference = load_reference(base)
    todo = [
        (variant, seed, planned, changed(base, {**planned.changes, "train.seed": seed}))
        for variant, planned in plan(experiment, base).items()
        for seed in settings.experiments.seeds
    ]
    outcomes = []
    for variant, seed, planned, wanted in tqdm(todo, desc=experiment.name, unit="training"):
        wanted = replace(wanted, dataset=replace(wanted.dataset, name=_dataset_name(base, wanted)))
        folder = _folder(wanted, seed)
        if not (folder / "outcome.json").exists():
            _train_and_measure(wanted, reference, folder)
        found = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
        outcomes.append(Outcome(variant=variant, seed=seed, **asdict(planned), **found))
    return outcomes


def plan(experiment: Experiment, settings: Settings) -> dict[str, Planned]:
    """Return every variant with the widths and steps that make equal what is to be equal.

    Steps of equal time hang on the machine, so the first plan is kept in a file and read from then on.
    """
    key = _hash([_identity(settings), [[name, asdict(c)] for name, c in experiment.variants.items()]])
    path = settings.experiments_dir / f"plan-{experiment.name}-{key}.json"
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {name: Planned(**values) for name, values in kept.items()}
    first, *_ = experiment.variants
    changes = {name: dict(change.settings) for name, change in experiment.variants.items()}
    goal = _parameters(changed(settings, changes[first]))
    for name, change in experiment.variants.items():
        if "parameters" in change.equal:
            own = changed(settings, changes[name])
            changes[name]["network_width"] = width_for(
                own.network_config, own.spectrogram.shape[0], goal
            ) * own.network_width  # fmt: skip
    seconds = _seconds_a_step({name: changed(settings, own) for name, own in changes.items()})
    for name, change in experiment.variants.items():
        if "time" in change.equal:
            steps = round(settings.train.num_steps * seconds[first] / seconds[name])
            changes[name]["train.num_steps"] = max(1, steps)
    planned = {name: Planned(own, seconds[name]) for name, own in changes.items()}
    save_json(path, {name: asdict(one) for name, one in planned.items()})
    return planned


def load_reference(settings: Settings) -> Reference:
    """Return recordings of the test split, and how far as many of the training split are from them.

    The recordings themselves, so that what a representation loses counts against it.
    """
    count, rate = settings.experiments.clips, settings.spectrogram.sample_rate
    train, test = (load_split_clips(settings, split, count) for split in ("train", "test"))
    floor = distances({"train": train}, test, rate)["train_to_test"]
    return Reference(test, floor, _highs(test, settings))


def by_variant(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Return the outcomes of each variant, in the order in which the variants came."""
    names = dict.fromkeys(outcome.variant for outcome in outcomes)
    return {name: [outcome for outcome in outcomes if outcome.variant == name] for name in names}


def load_sound(outcome: Outcome) -> Tensor | None:
    """Return the few waveforms (N, L) that were kept of a training; None where it diverged."""
    if outcome.clips is None:
        return None
    return torch.from_numpy(np.load(outcome.clips, allow_pickle=False).astype(np.float32))


def _train_and_measure(settings: Settings, reference: Reference, folder: Path) -> None:
    """Train, sample, measure; write outcome.json as the last of all."""
    ensure_dataset(settings)
    run_dir = next(iter(sorted(folder.glob("0*"))), None)
    run_dir = open_run(settings, folder, run_dir, settings.diffusion_parts)
    try:
        fit_diffusion(settings, None, run_dir)
        diverged = False
    except TrainingDiverged as error:
        logger.warning("%s: %s", folder.name, error)
        diverged = True
    metrics = read_metrics(run_dir / "metrics.csv")
    samples_a_step = settings.train.batch_size * settings.train.grad_accumulation
    found = {
        "parameters": _parameters(settings),
        "num_steps": settings.train.num_steps,
        "diverged": diverged,
        "losses": {
            key.removeprefix("val_loss_t"): value
            for row in metrics if "val_loss" in row
            for key, value in row.items() if key.startswith("val_loss_t")
        },
        "curve": [(row["step"] * samples_a_step, row["loss"]) for row in metrics if "loss" in row],
    }  # fmt: skip
    found |= UNMEASURED if diverged else _measure(settings, reference, run_dir)
    save_json(folder / "outcome.json", found)


def _measure(settings: Settings, reference: Reference, run_dir: Path) -> dict[str, Any]:
    """Sample the same seeds as every other training and hold them against recordings."""
    generator = Generator.load(run_dir)
    seeds, rate = range(len(reference.test)), settings.spectrogram.sample_rate
    x0 = generator.generate(seeds, settings.sampler, settings.sample_batch_size, progress=False)
    sound = generator.to_audio(x0)
    clips = run_dir / "clips.npy"
    kept = sound[:KEPT_CLIPS, 0] / sound[:KEPT_CLIPS, 0].abs().amax(1, keepdim=True).clamp(min=1e-9)
    write_then_rename(clips, lambda path: np.save(path, kept.numpy().astype(np.float16)))
    return {
        "distance": distances({"samples": sound}, reference.test, rate)["samples_to_test"],
        "highs": _highs(sound, settings) - reference.highs,
        "clips": str(clips),
    }


def _highs(waveforms: Tensor, settings: Settings) -> float:
    """Return the share of the power above half of the band that the representation keeps, in dB."""
    spectrogram = settings.spectrogram
    return power_share_above(waveforms, spectrogram.sample_rate, spectrogram.max_frequency / 2)


def _seconds_a_step(variants: dict[str, Settings]) -> dict[str, float]:
    """Return the median seconds of a training step of each, taken in turns so that all meet one machine."""
    steps = {
        name: training_step(build_network(own), make_loss(own), own.train, own.spectrogram.shape)
        for name, own in variants.items()
    }
    return median_in_turns(steps, TIMED_STEPS, pick_device(), warm_ups=2)


def _parameters(settings: Settings) -> int:
    return parameters_of(settings.network_config, settings.spectrogram.shape[0])


def _dataset_name(base: Settings, wanted: Settings) -> str:
    """Another representation is another dataset beside the first."""
    encoding = {k: v for k, v in to_dict(wanted.spectrogram).items() if k not in INVERSE_ONLY}
    same = all(getattr(base.spectrogram, name) == value for name, value in encoding.items())
    return wanted.dataset.name if same else f"{wanted.dataset.name}-{_hash(encoding)}"


def _folder(settings: Settings, seed: int) -> Path:
    key = _hash([_identity(settings), settings.experiments.clips])
    return settings.experiments_dir / f"{settings.preset}-seed{seed}-{key}"


def _identity(settings: Settings) -> dict[str, Any]:
    values = to_dict(settings)
    decisive = {name: values[name] for name in DECISIVE}
    decisive["dataset"].pop("num_workers")
    return {**decisive, "music_dir": values["music_dir"]}


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def _varied(config: Any, changed_fields: set[str]) -> Any:
    """Return the config, a plain network as one of the journal's where only that has one of the fields."""
    only_theirs = {f.name for f in fields(JournalUNetConfig)} - {f.name for f in fields(UNetConfig)}
    return as_journal(config) if type(config) is UNetConfig and changed_fields & only_theirs else config


def _require_field(config: Any, field: str, name: str) -> None:
    known = [f.name for f in fields(config)]
    if field not in known:
        raise ValueError(f"there is no setting {name!r}; choose one of {', '.join(known)}")
