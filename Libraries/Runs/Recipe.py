"""One way to train every kind of model; what differs between the kinds is a `Recipe`."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from Libraries.Dataset.Manifest import INVERSE_ONLY, content_settings, load_manifest, manifest_hash, pieces_of
from Libraries.Dataset.SpectrogramDataset import make_loaders
from Libraries.DemoMusic.Corpus import corpus_soundfont
from Libraries.Disk import remove_leftovers
from Libraries.Plots.SpectrogramPlots import save_figure
from Libraries.Runs.Run import Run, claim_run, find_run
from Libraries.Runs.Settings import Settings, music_folder, to_dict, value_at, with_defaults
from Libraries.Training.Checkpoint import load_weights, save_json
from Libraries.Training.Loop import LoaderFactory, Loss, decided_once, fit, process_state
from Libraries.Training.RunLog import read_metrics
from Libraries.Training.Tracker import HEARD, Shown, require_installed
from Libraries.Training.TrainConfig import TrainConfig
from Libraries.Utils import LIGHT_DEBUG, get_logger, spread_indices

logger = get_logger("Recipe")

AUGMENTATION = (
    "dataset.random_gain_db",
    "dataset.random_polarity",
    "dataset.random_swap",
    "dataset.time_shift",
    "dataset.mix",
)  # of the clips at reading
Preview = Callable[[Run, int, nn.Module], Shown]  # (run, step, EMA model): draws to the run's results


@dataclass(frozen=True)
class Recipe:
    """Everything that training one kind of model needs."""

    parent: Path  # of the runs of this kind
    name: str  # of a new run, after its number
    settings: Any  # the dataclass that conf.json holds
    made_of: tuple[str, ...]  # the settings that must not change when a run resumes
    train: TrainConfig
    build: Callable[[], nn.Module]  # the network, freshly initialised
    loss: Loss
    loaders: LoaderFactory
    dataset: Callable[[], dict[str, Any]]  # reads the record of the data, such as `music_record`
    requires: dict[str, str] = field(default_factory=dict)  # record of another run that this one depends on
    preview: Preview | None = None
    finish: Callable[[Run, nn.Module], None] | None = None  # called with the EMA model by one process

    @property
    def training(self) -> str:
        """The part of `made_of` that is `train`, such as "vae.train"."""
        return next(part for part in self.made_of if part.split(".")[-1] == "train")

    def network(self) -> nn.Module:
        """Return a freshly initialised network, with the same weights for the same training seed."""
        with torch.random.fork_rng([]):
            torch.manual_seed(self.train.seed)
            return self.build()


def train(recipe: Recipe, run_dir: Path | None = None) -> Path:
    """Train a model by its recipe; return its run folder.

    Args:
        run_dir: an interrupted run to resume; None starts a new one.

    Raises:
        ValueError: the run was made with other settings, other data or another autoencoder, or the tracker is
            not installed.
        CheckpointError: `run_dir` is not a run.
        DiskError: the disk is full, forbidden, gone or broken; resume the run.
    """
    require_installed(recipe.train.tracker)  # before there is a run
    network = recipe.network()
    run = open_run(recipe, run_dir)
    _record_steps(recipe, run)
    preview = recipe.preview and functools.partial(recipe.preview, run)
    remove_leftovers(run.results_dir)
    network = fit(network, recipe.loss, recipe.loaders, recipe.train, run.folder, preview=preview)
    if recipe.finish is not None:
        if process_state().is_main_process:
            recipe.finish(run, network)
        process_state().wait_for_everyone()
    return run.folder


def resumable(recipe: Recipe) -> Path | None:
    """Return the newest run that this recipe can resume, in all processes the same; None: there is none."""

    fits = functools.partial(can_resume, recipe)
    run = decided_once(lambda: find_run([recipe.parent], "conf.json", fits))
    return run and run.folder


def can_resume(recipe: Recipe, run: Run) -> bool:
    """Return whether a run has the settings and data of a recipe."""
    try:
        return bool(open_run(recipe, run.folder))
    except ValueError:
        return False


def open_run(recipe: Recipe, run_dir: Path | None) -> Run:
    """Return a new run with its conf.json, or the run in `run_dir` if its settings and data are the same.

    More steps at a constant learning rate are the same run, continued.

    Raises:
        ValueError, CheckpointError: as `train`.
    """
    schema, values, record = type(recipe.settings), to_dict(recipe.settings), recipe.dataset()
    if run_dir is None:
        conf = {"settings": values, "requires": recipe.requires, **record}
        return Run(claim_run(recipe.parent, recipe.name, conf), schema)
    run = Run(run_dir, schema)
    same = dict.fromkeys(recipe.made_of, ()) | _may_differ(recipe, run)
    _require_same_parts(f"the run {run.name}", run, values, same)
    if run.conf["requires"] != recipe.requires:
        theirs, ours = (_named(requires) for requires in (run.conf["requires"], recipe.requires))
        raise ValueError(f"{run.name} belongs to {theirs}, not {ours}: use the autoencoder as it was")
    if any(run.conf["dataset"].get(name) != record["dataset"].get(name) for name in ("hash", "latents")):
        raise ValueError(
            f"{run.name} was trained on another dataset than the present {record['dataset']['folder']}"
        )
    return run


def _may_differ(recipe: Recipe, run: Run) -> dict[str, tuple[str, ...]]:
    """Return what may differ in the training, by its path: the tracker, and where allowed more steps."""
    there = (_part_of(run, recipe.training) or {}).get("num_steps")
    longer = isinstance(there, int) and recipe.train.num_steps > there
    continued = longer and recipe.train.lr_schedule == "constant"
    return {recipe.training: ("tracker", "num_steps") if continued else ("tracker",)}


def _record_steps(recipe: Recipe, run: Run) -> None:
    """Write to conf.json that a run goes on to more steps, and to how many it was to go before."""
    training = value_at(recipe.training, run.conf["settings"])
    if training["num_steps"] == recipe.train.num_steps:
        return
    run.conf.setdefault("earlier_num_steps", []).append(training["num_steps"])
    training["num_steps"] = recipe.train.num_steps
    if process_state().is_main_process:
        save_json(run.folder / "conf.json", run.conf)


def music_record(settings: Settings) -> dict[str, Any]:
    """Return what a run records about its dataset: folder, hash, typical gain, classes, training pieces.

    Of demo music also the SoundFont that played it.

    Raises:
        ValueError: as `require_dataset`.
    """
    manifest = require_dataset(settings)
    return {
        "dataset": {"folder": str(settings.dataset_dir), "hash": manifest_hash(settings.dataset_dir)},
        "gain": manifest["gain"],
        "classes": manifest["classes"],
        "training_pieces": sorted(pieces_of(manifest, "train")),
        **_soundfont(settings),
    }


def _soundfont(settings: Settings) -> dict[str, Any]:
    folder = music_folder(settings)
    played = corpus_soundfont(folder) if folder == settings.demo_music_dir else None
    return {"soundfont": played} if played else {}


def require_dataset(settings: Settings) -> dict[str, Any]:
    """Return the manifest of the dataset of these settings.

    Raises:
        DatasetError: there is none.
        ValueError: it was built with another spectrogram, overlap, split, seed or silence_db.
    """
    manifest = load_manifest(settings.dataset_dir)
    wanted = content_settings(settings.spectrogram, settings.dataset)
    for part, ours in wanted.items():
        require_same(f"the dataset {settings.dataset_dir}", manifest["settings"][part], ours, INVERSE_ONLY)
    return manifest


def clip_loaders(
    settings: Settings, config: TrainConfig, latents: Path | None = None, **options
) -> tuple[DataLoader, DataLoader]:
    """Return the endless training loader, and one of validation clips spread evenly over their split.

    Args:
        settings: give the dataset and its augmentation.
        config: gives the number of validation clips.
        latents: the folder of the dataset's latents, to read those in its place.
        options: those of `make_loaders`.
    """
    folder, augment = (latents, None) if latents else (settings.dataset_dir, settings.dataset)
    train, validation = make_loaders(folder, augment=augment, **options)
    spread = spread_indices(len(validation.dataset), config.num_validation_clips)
    subset = Subset(validation.dataset, spread)
    return train, DataLoader(subset, batch_size=validation.batch_size, collate_fn=validation.collate_fn)


def save_preview_figures(
    run: Run, name: str, step: int, figure: Figure, plot_curves: Callable, x0: Tensor | None = None
) -> Shown:
    """Write a preview as `name`-<step>.png, and loss.png by `plot_curves`, to the run's results.

    Args:
        x0: (N, C, F, T), what the preview can be heard by in a tracker.
    """
    save_figure(figure, run.results_dir / f"{name}-{step:08d}.png")
    curves = plot_curves(read_metrics(run.folder / "metrics.csv"), run.name)
    save_figure(curves, run.results_dir / "loss.png")
    return Shown(name, figure, None if x0 is None else functools.partial(_sound, run, x0[:HEARD]))


def _sound(run: Run, x0: Tensor) -> tuple[Tensor, int]:
    return run.spectrogram().decode(x0.cpu()), run.config("spectrogram").sample_rate


def require_same(owner: str, theirs: dict, ours: dict, ignored: tuple[str, ...] = ()) -> None:
    """Raise a ValueError that names the settings in which two parts differ; of other types, the types."""
    theirs, ours = (json.loads(json.dumps(part)) for part in (theirs, ours))  # tuples are lists in JSON
    names = (theirs.keys() | ours.keys()) - set(ignored)
    if theirs.get("type") != ours.get("type"):
        names = {"type"}
    different = [f"{name} is {theirs.get(name)} there and {ours.get(name)} here"
                 for name in sorted(names) if theirs.get(name) != ours.get(name)]  # fmt: skip
    if different:
        raise ValueError(f"{owner} has other settings ({'; '.join(different)}): use those, or make a new one")


def begin_with(
    network: nn.Module,
    run: Run,
    setting: str,
    settings: Settings,
    same: dict[str, tuple[str, ...]],
    adapt: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> nn.Module:
    """Load the newest averaged weights of another run into a network; return it.

    Weights that the run lacks or has in another shape, as those of a critic, stay as they are.

    Args:
        setting: the path of the setting that names the run, for an error.
        same: path of each part of the settings in which the run must be the same, with the names in that
            part which may differ.
        adapt: from the run's weights to those for this network, where the two differ on purpose.

    Raises:
        CheckpointError: there is no such run, or it lacks weights.
        ValueError: the run has other settings.
    """
    _require_same_parts(f"{run.name}, with which {setting} begins,", run, to_dict(settings), same)
    there, own = adapt(run.weights()), network.state_dict()
    fitting = {name: value for name, value in there.items() if name in own and value.shape == own[name].shape}
    load_weights(network, {**own, **fitting}, run.weights_path())
    logger.log(LIGHT_DEBUG, "begun with the weights of %s", run.name)
    return network


def _require_same_parts(owner: str, run: Run, values: dict, same: dict[str, tuple[str, ...]]) -> None:
    for part, ignored in same.items():
        theirs, ours = _part_of(run, part), value_at(part, values)
        both = (theirs, ours) if isinstance(theirs, dict) else ({part: theirs}, {part: ours})
        require_same(owner, *both, ignored)


def _part_of(run: Run, part: str) -> Any:
    """Return a part of a run's settings; of one that is younger than the run its default, if it has one."""
    try:
        return value_at(part, with_defaults(run.schema, run.conf["settings"]))
    except KeyError:
        return None


def _named(requires: dict[str, str]) -> str:
    return f"the autoencoder {requires['run']} ({requires['weights'][:12]})" if requires else "no autoencoder"
