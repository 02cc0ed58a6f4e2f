"""Trained runs of the phase: which one fits a spectrogram, and the `Spectrogram` that decodes with it."""

from dataclasses import replace
from pathlib import Path

import torch

from Libraries.Dataset.Manifest import INVERSE_ONLY
from Libraries.Phase import LearnedPhase, PhaseConfig, PhaseNet, misfits
from Libraries.Runs.Run import load_average, read_conf
from Libraries.Runs.Settings import from_dict
from Libraries.Sound.Spectrogram import Gain, Spectrogram
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Training.Checkpoint import (
    CheckpointError,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    save_json,
)
from Libraries.Utils import pick_device, resolve_precision

RELEASED = Path(__file__).resolve().parents[1] / "Models" / "released"  # what comes with the repository
# of its settings, what a released run tells
GIVEN_AWAY = ("spectrogram", "phase_net", "phase_train")


def load_phase(run_dir: Path, config: SpectrogramConfig, device: torch.device | None = None) -> LearnedPhase:
    """Load the newest EMA weights of a run for spectrograms of `config`.

    Raises:
        CheckpointError: the folder is no run, has no weights, or they were trained for other magnitudes.
    """
    conf = read_conf(run_dir)
    theirs = from_dict(SpectrogramConfig, conf["settings"]["spectrogram"])
    wrong = misfits(theirs, config)
    if wrong:
        raise CheckpointError(
            f"the phase of {Path(run_dir).name} was learned for another spectrogram ({'; '.join(wrong)}): "
            "train one on this (Train Phase), name another in phase_run, or set phase='pghi'"
        )
    network = PhaseNet(from_dict(PhaseConfig, conf["settings"]["phase_net"]), theirs)
    load_average(network, run_dir)
    device = device or pick_device()
    return LearnedPhase(network.to(device, memory_format=torch.channels_last), resolve_precision("auto"))


def find_phase_run(config: SpectrogramConfig, phase_dir: Path, phase_run: str) -> Path:
    """Return the run that spectrograms of `config` are decoded with.

    Args:
        phase_dir: parent of the runs, `Models/phase`.
        phase_run: one of them, or of those in `Models/released`, by name; "latest": the newest of them that
            fits, else the released one that does.

    Raises:
        CheckpointError: there is no such run, or none that fits.
    """
    parents = Path(phase_dir), RELEASED
    if phase_run != "latest":
        return next(
            (own / phase_run for own in parents if (own / phase_run).is_dir()), parents[0] / phase_run
        )
    found = [path.parent for own in parents for path in sorted(own.glob("*/ema-*.pth"), reverse=True)]
    for run_dir in dict.fromkeys(found):
        if not misfits(_spectrogram_of(run_dir), config):
            return run_dir
    raise CheckpointError(
        f"there is no learned phase for this spectrogram in {phase_dir}, and none came with the repository: "
        "train one (Train Phase, with phase='pghi' until then), or set phase='pghi'"
    )


def open_spectrogram(
    config: SpectrogramConfig,
    phase_dir: Path,
    phase_run: str,
    gain: Gain | None = None,
    device: torch.device | None = None,
) -> Spectrogram:
    """Return the `Spectrogram` of these settings, with the trained network where phase='learned'.

    Args:
        phase_dir, phase_run: as in `find_phase_run`.
        gain: as in `Spectrogram`.
        device: of the network alone; None picks the best one.

    Raises:
        CheckpointError: phase='learned', and there is no such run, or it was trained for other magnitudes.
    """
    if config.phase != "learned":
        return Spectrogram(config, gain)
    run_dir = find_phase_run(config, phase_dir, phase_run)
    return Spectrogram(config, gain, load_phase(run_dir, config, device))


def open_run_spectrogram(
    run_dir: Path, inverse: SpectrogramConfig | None = None, device: torch.device | None = None
) -> Spectrogram:
    """Return the `Spectrogram` of a diffusion or autoencoder run, with its typical gain.

    Args:
        run_dir: `Models/<kind>/<run>`; a learned phase is looked for in `Models/phase`.
        inverse: settings by whose inverse it shall decode instead of the run's own.
        device: as in `open_spectrogram`.

    Raises:
        CheckpointError: the folder is no run, or the learned phase it decodes with is missing or foreign.
    """
    conf = read_conf(run_dir)
    config = from_dict(SpectrogramConfig, conf["settings"]["spectrogram"])
    config = config if inverse is None else with_inverse_of(config, inverse)
    gain = Gain(*(torch.tensor([value]) for value in conf["gain"]))
    phase_run = conf["settings"].get("phase_run", "latest")  # runs from before it was learned have none
    return open_spectrogram(config, Path(run_dir).parent.parent / "phase", phase_run, gain, device)


def with_inverse_of(config: SpectrogramConfig, other: SpectrogramConfig) -> SpectrogramConfig:
    """Return `config` with the settings of `other` that decide the inverse alone."""
    return replace(config, **{name: getattr(other, name) for name in INVERSE_ONLY})


def inverse_by(config: SpectrogramConfig, phase: str, learned: LearnedPhase | None) -> Spectrogram:
    """Return the `Spectrogram` of these settings but for `phase`."""
    return Spectrogram(replace(config, phase=phase), phase_model=learned)


def release_phase(run_dir: Path, folder: Path) -> None:
    """Write a run's newest weights, in float16, to `folder`, with the settings that made them and its losses.

    Nothing else of its conf.json goes along, such as where it was trained.
    """
    conf, path = read_conf(run_dir), latest_checkpoint(run_dir, "ema")
    settings = {name: conf["settings"][name] for name in GIVEN_AWAY}
    content = load_checkpoint(path)
    content["weights"] = {name: value.half() for name, value in content["weights"].items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder / path.name, content)
    for earlier in set(folder.glob("ema-*.pth")) - {folder / path.name}:
        earlier.unlink()
    save_json(folder / "conf.json", {"settings": settings, "provenance": conf["provenance"]})
    (folder / "metrics.csv").write_bytes((run_dir / "metrics.csv").read_bytes())


def _spectrogram_of(run_dir: Path) -> SpectrogramConfig:
    return from_dict(SpectrogramConfig, read_conf(run_dir)["settings"]["spectrogram"])
