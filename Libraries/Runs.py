"""Run folders of every kind of model: made, or continued after checking that nothing has changed."""

import json
from pathlib import Path

from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader, Subset

from Libraries.Checkpoint import CheckpointError, save_json
from Libraries.Dataset import make_loaders
from Libraries.DatasetManifest import INVERSE_ONLY, load_manifest, manifest_hash
from Libraries.Settings import Settings, provenance, to_dict
from Libraries.Training import process_state
from Libraries.Utils import new_run_dir, spread_indices


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
