"""Run folders of every kind of model: made, or continued after checking that nothing has changed."""

import json
import re
from pathlib import Path

from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import DataLoader, Subset

from Libraries.Dataset.Manifest import INVERSE_ONLY, load_manifest, manifest_hash
from Libraries.Dataset.SpectrogramDataset import make_loaders
from Libraries.Runs.Settings import Settings, provenance, to_dict
from Libraries.Training.Checkpoint import (
    CheckpointError,
    latest_checkpoint,
    load_checkpoint,
    load_weights,
    save_json,
)
from Libraries.Training.Loop import process_state
from Libraries.Training.PostHocEMA import reconstruct
from Libraries.Utils import spread_indices

_RUN_NAME = re.compile(r"^(\d{5})-")


def open_run(
    settings: Settings,
    parent: Path,
    run_dir: Path | None,
    parts: tuple[str, ...],
    vae: dict[str, str] | None = None,
) -> Path:
    """Return a new run folder below `parent` with its conf.json, or `run_dir` if it was made of the same.

    Args:
        settings: of the whole; a new run's conf.json holds them, the dataset's hash and its typical gain.
        run_dir: an interrupted run to go on with; None starts a new one.
        parts: names of the settings, or of parts of them, in which an interrupted run must agree.
        vae: of a diffusion in latents, the record of the autoencoder it belongs to (`codec_record`).

    Raises:
        ValueError: the dataset was built with another spectrogram, or the run with other settings.
        CheckpointError: `run_dir` is no run.
    """
    manifest = load_manifest(settings.dataset_dir)
    conf = {
        "settings": to_dict(settings),
        "dataset": {"folder": str(settings.dataset_dir), "hash": manifest_hash(settings.dataset_dir)},
        "vae": vae,
        "gain": manifest["gain"],
        "classes": manifest["classes"],
        "provenance": provenance(),
    }
    require_same(
        "the dataset", manifest["settings"]["spectrogram"], to_dict(settings.spectrogram), INVERSE_ONLY
    )
    if run_dir is None:
        return claim_run(parent, settings.preset, conf)
    _require_same_run(run_dir, conf, parts)
    return run_dir


def read_conf(run_dir: Path) -> dict:
    """Return what a run's conf.json holds; a CheckpointError says that a folder is no run."""
    path = Path(run_dir) / "conf.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        reason = (
            f"{path} cannot be read ({error}): name a run's own folder, such as Models/diffusion/00000-BASE"
        )
        raise CheckpointError(reason) from None


def results_of(settings: Settings, run_dir: Path) -> Path:
    """Return the results folder of a run."""
    return settings.results_dir / run_dir.parent.name / run_dir.name


def clip_loaders(settings: Settings, **options) -> tuple[DataLoader, DataLoader]:
    """Return the endless training loader and `num_validation_clips` clips spread over the validation split.

    `options` are those of `make_loaders`.
    """
    train, validation = make_loaders(settings.dataset_dir, augment=settings.dataset, **options)
    spread = spread_indices(len(validation.dataset), settings.num_validation_clips)
    subset = Subset(validation.dataset, spread)
    return train, DataLoader(subset, batch_size=validation.batch_size, collate_fn=validation.collate_fn)


def claim_run(parent: Path, name: str, conf: dict) -> Path:
    """Make a new run folder with its conf.json; all processes of a launch share the one made by the first."""
    state, run_dir = process_state(), [None]
    if state.is_main_process:
        run_dir = [new_run_dir(parent, name)]
        save_json(run_dir[0] / "conf.json", conf)
    if state.num_processes > 1:
        broadcast_object_list(run_dir)
    return run_dir[0]


def load_average(
    network: nn.Module, run_dir: Path, step: int | None = None, ema_length: float | None = None
) -> None:
    """Load the EMA weights of a run into its network.

    Args:
        step: of the optimiser; None is the last one saved.
        ema_length: relative length of an average that is put together now (`PostHocEMA.reconstruct`); None
            takes the one that training kept.

    Raises:
        CheckpointError: there are no such weights, or they do not fit.
    """
    if ema_length is not None:
        load_weights(network, reconstruct(run_dir, ema_length, step), Path(run_dir))
        return
    path = latest_checkpoint(run_dir, "ema") if step is None else Path(run_dir) / f"ema-{step:08d}.pth"
    load_weights(network, load_checkpoint(path)["weights"], path)


def _require_same_run(run_dir: Path, conf: dict, parts: tuple[str, ...]) -> None:
    """Raise a ValueError if the run was made of other settings or another dataset."""
    known = read_conf(run_dir)
    if known["vae"] != conf["vae"]:
        theirs, ours = (
            "on spectrograms" if vae is None else f"in the latents of {vae['run']} ({vae['weights'][:12]})"
            for vae in (known["vae"], conf["vae"])
        )
        raise ValueError(f"{run_dir.name} is a diffusion {theirs}, not {ours}: set vae_run as it was")
    for part in parts:
        theirs, ours = known["settings"].get(part), conf["settings"][part]
        both = (theirs, ours) if isinstance(theirs, dict) else ({part: theirs}, {part: ours})
        require_same(f"the run {run_dir.name}", *both)
    if known["dataset"]["hash"] != conf["dataset"]["hash"]:
        raise ValueError(
            f"{run_dir.name} was trained on another dataset than {conf['dataset']['folder']} is now"
        )


def require_same(owner: str, theirs: dict, ours: dict, ignored: tuple[str, ...] = ()) -> None:
    """Raise a ValueError that names the settings in which two parts differ."""
    theirs, ours = (json.loads(json.dumps(part)) for part in (theirs, ours))  # tuples are lists in JSON
    names = (theirs.keys() | ours.keys()) - set(ignored)
    different = [f"{name} is {theirs.get(name)} there and {ours.get(name)} here"
                 for name in sorted(names) if theirs.get(name) != ours.get(name)]  # fmt: skip
    if different:
        raise ValueError(f"{owner} has other settings ({'; '.join(different)}): use those, or make a new one")


def new_run_dir(parent: Path, name: str) -> Path:
    """Make and return `parent/00007-name` with the next free number; an existing run is never reused.

    Raises:
        ValueError: `name` has characters other than letters, digits, '.', '_' and '-'.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"run name {name!r} must be letters, digits, '.', '_' or '-'")
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        number = 1 + max((_run_number(run) for run in parent.iterdir()), default=-1)
        run_dir = parent / f"{number:05d}-{name}"
        try:
            run_dir.mkdir()
        except FileExistsError:  # another process took this number in between
            continue
        return run_dir


def latest_run(parent: Path, containing: str = "*.pth") -> Path:
    """Return the newest run folder in `parent` that holds a file like `containing`.

    Raises:
        FileNotFoundError: there is none; the sentence says where it looked.
    """
    runs = [run for run in parent.iterdir() if _run_number(run) >= 0] if parent.is_dir() else []
    for run in sorted(runs, key=_run_number, reverse=True):
        if any(run.glob(containing)):
            return run
    raise FileNotFoundError(f"no run with {containing} in {parent}: train a model first")


def _run_number(run: Path) -> int:
    match = _RUN_NAME.match(run.name)
    return int(match.group(1)) if match else -1
