"""Weights that come with the repository, written from a run."""

import functools
from collections.abc import Iterable
from pathlib import Path

from Libraries.Disk import write_whole
from Libraries.Runs.Run import FORMAT, Run
from Libraries.Runs.Settings import value_at
from Libraries.Training.Checkpoint import WEIGHTS, load_checkpoint, save_json, save_weights

FOLDERS = {"root": ".", "music_dir": None}  # settings that name folders of one machine


def release(
    run_dir: Path,
    folder: Path,
    settings: Iterable[str],
    also: Iterable[str] = (),
    guide_step: int | None = None,
) -> None:
    """Write a run's newest averages to `folder`, as float16 safetensors, and what is needed to use them.

    Everything else in conf.json, such as the folder of the dataset, is left out, and folders of this machine
    among the settings are emptied.

    Args:
        settings: paths of the settings that are kept, such as "vae.network".
        also: keys of conf.json beside the settings that are kept, such as "gain".
        guide_step: of earlier weights that are released too, as the guide model; None: none.
    """
    run, folder = Run(run_dir), Path(folder)
    steps = [None] if guide_step is None else [guide_step, None]
    paths = [run.weights_path(step) for step in steps]
    folder.mkdir(parents=True, exist_ok=True)
    contents = [load_checkpoint(path) for path in paths]
    for earlier in folder.glob(WEIGHTS):
        earlier.unlink()
    for content in contents:
        halves = {name: value.half() for name, value in content["weights"].items()}
        save_weights(folder / f"ema-{content['step']:08d}.safetensors", content["step"], halves)
    write_conf(run, folder, settings, also)
    write_whole(folder / "metrics.csv", (run.folder / "metrics.csv").read_bytes())


def write_conf(run: Run, folder: Path, settings: Iterable[str], also: Iterable[str]) -> None:
    """Write a run's conf.json to another folder, cut to some settings and, with its provenance, some keys."""
    kept = {name: run.conf[name] for name in ("provenance", *also)}
    save_json(folder / "conf.json", {"format": FORMAT, "settings": _kept(run, settings), **kept})


def _kept(run: Run, paths: Iterable[str]) -> dict:
    """Return the tree of settings cut to some paths."""
    kept: dict = {}
    for path in paths:
        *parents, name = path.split(".")
        branch = functools.reduce(lambda part, key: part.setdefault(key, {}), parents, kept)
        branch[name] = value_at(path, run.conf["settings"])
    return kept | {name: value for name, value in FOLDERS.items() if name in kept}
