"""Create, find and read run folders `Models/<kind>/<00007-name>/` of every kind of model."""

import contextlib
import json
import platform
import re
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from Libraries.Dataset.Manifest import INVERSE_ONLY
from Libraries.Disk import disk_errors
from Libraries.Phase import LearnedPhase, PhaseNet, misfits
from Libraries.Runs.Settings import LATEST, Settings, from_dict, part_of
from Libraries.Sound.Spectrogram import Gain, Spectrogram
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Training.Checkpoint import (
    WEIGHTS,
    CheckpointError,
    find_checkpoints,
    latest_checkpoint,
    load_checkpoint,
    load_weights,
    named,
    save_json,
)
from Libraries.Training.Loop import decided_once
from Libraries.Training.PostHocEMA import reconstruct
from Libraries.Utils import pick_device, resolve_precision

FORMAT = 2  # of conf.json
RELEASED = Path(__file__).resolve().parents[2] / "Models" / "released"  # what comes with the repository
RELEASED_MODEL = "diffusion-cpu"  # with which music is made where no run is named
_RUN_NAME = re.compile(r"^(\d{5})-")


class Run:
    """A run folder, whose parts are read on demand.

    Args:
        folder: `Models/<kind>/<run>`.
        schema: the dataclass of the settings in its conf.json.

    Raises:
        CheckpointError: (any part) the folder is not a run, is from an earlier version, or lacks that part.
    """

    def __init__(self, folder: Path, schema: type = Settings):
        self.folder, self.schema = Path(folder).absolute(), schema

    @property
    def name(self) -> str:
        """The name of the folder, such as 00007-BASE."""
        return self.folder.name

    @property
    def models_dir(self) -> Path:
        """`Models`, two folders above; the runs of experiments are deeper in it."""
        parents = self.folder.parents
        return next((parent for parent in parents if parent.name == "Models"), parents[1])

    @property
    def results_dir(self) -> Path:
        """The folder of this run's results, `Results/<kind>/<run>`."""
        return self.models_dir.parent / "Results" / self.folder.parent.name / self.name

    @cached_property
    def conf(self) -> dict:
        """All of conf.json: settings, requires, provenance, and what `music_record` says of the data."""
        path = self.folder / "conf.json"
        try:
            with disk_errors(path, "read"):
                if not path.is_file():
                    raise ValueError("there is no such file")
                text = path.read_text("utf-8", "surrogateescape")
            conf = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}): name a run's own folder, such as "
                "Models/diffusion/00000-BASE"
            ) from None
        if not isinstance(conf, dict) or "settings" not in conf or conf.get("format") != FORMAT:
            raise CheckpointError(
                f"{self.folder} was made by an earlier version of this repository, whose settings have other "
                "names: train it again"
            )
        return conf

    @property
    def settings(self) -> Any:
        """All settings, as `schema`; the root of `Settings` is where the run is now."""
        settings = self._typed(lambda values: from_dict(self.schema, values))
        return replace(settings, root=self.models_dir.parent) if self.schema is Settings else settings

    def config(self, path: str) -> Any:
        """Return one typed part of the settings, such as "spectrogram" or "vae.network"."""
        return self._typed(lambda values: part_of(self.schema, values, path))

    def weights(self, step: int | None = None, ema_length: float | None = None) -> dict[str, Tensor]:
        """Return EMA weights.

        Args:
            step: of the optimiser; None: the last one saved.
            ema_length: relative length of an average to reconstruct now (`PostHocEMA.reconstruct`); None:
                the average that training kept.
        """
        if ema_length is not None:
            return reconstruct(self.folder, ema_length, step)
        return load_checkpoint(self.weights_path(step))["weights"]

    def weights_path(self, step: int | None = None) -> Path:
        """Return the file of the EMA weights that training kept, the last ones or those of a step."""
        if step is None:
            return latest_checkpoint(self.folder, "ema")
        return dict(find_checkpoints(self.folder, "ema")).get(step, self.folder / f"ema-{step:08d}.pth")

    def is_finished(self, training: str) -> bool:
        """Return whether the weights after the last step of `training`, such as "vae.train", are there."""
        return self.weights_path(self.config(training).num_steps).exists()

    def load_into(
        self, network: nn.Module, step: int | None = None, ema_length: float | None = None
    ) -> nn.Module:
        """Load `weights` into a network and return it; CheckpointError if they do not fit."""
        source = self.folder if ema_length is not None else self.weights_path(step)
        load_weights(network, self.weights(step, ema_length), source)
        return network

    def spectrogram(
        self, inverse: SpectrogramConfig | None = None, device: torch.device | None = None
    ) -> Spectrogram:
        """Return the run's `Spectrogram`, with the typical gain of its training music.

        Args:
            inverse: settings whose inverse decodes instead of the run's own.
            device: of the learned-phase network; None picks the best one.
        """
        config = self.config("spectrogram")
        config = config if inverse is None else with_inverse_of(config, inverse)
        gain = Gain(*(torch.tensor([value]) for value in self.conf["gain"]))
        phase_run = self.conf["settings"]["phase"]["run"]
        return open_spectrogram(config, self.models_dir / "phase", phase_run, gain, device)

    def _typed(self, read: Callable[[dict], Any]) -> Any:
        try:
            return read(self.conf["settings"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CheckpointError(
                f"{self.folder / 'conf.json'} does not hold what is needed: {error}"
            ) from None


def find_run(
    parents: Iterable[Path], holding: str = WEIGHTS, fits: Callable[[Run], bool] = lambda run: True
) -> Run | None:
    """Return the newest fitting run with a file that matches `holding`, from the first parent with one.

    If `fits` cannot read the settings of a run, as those of earlier versions, the run does not fit.
    """
    for parent in parents:
        for folder in sorted(Path(parent).glob("*/"), key=_by_number, reverse=True):
            if any(folder.glob(holding)) and _readable_and(fits, Run(folder)):
                return Run(folder)
    return None


def runs_of(models_dir: Path, kind: str) -> dict[str, Path]:
    """Return all runs of a kind that have weights, by name: released ones, then your own, newest first.

    Of the released ones `RELEASED_MODEL` comes first.
    """
    own = sorted((models_dir / kind).glob("*/"), key=_by_number, reverse=True)
    released = sorted(RELEASED.glob(f"{kind}-*/"), key=lambda folder: (folder.name != RELEASED_MODEL, folder))
    folders = [*released, *own]
    return {folder.name: folder for folder in folders if any(folder.glob(WEIGHTS))}


def named_run(models_dir: Path, kind: str, name: str) -> Path:
    """Return the folder of a run in `Models/<kind>`, else of that in Models/released if there is one."""
    own = models_dir / kind / name
    return own if own.is_dir() or not (RELEASED / name).is_dir() else RELEASED / name


def latest_run(parent: Path, containing: str = "*.pth") -> Path:
    """Return the newest run folder in `parent` that has a file matching `containing`.

    Raises:
        FileNotFoundError: there is none; the message names the folder searched.
    """
    run = find_run([parent], containing)
    if run is None:
        raise FileNotFoundError(f"no run with {named(containing)} in {parent}: train a model first")
    return run.folder


def new_run_dir(parent: Path, name: str) -> Path:
    """Create and return `parent/00007-name` with the next free number; an existing run is never reused.

    Raises:
        ValueError: `name` has characters other than letters, digits, '.', '_' and '-'.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"run name {name!r} must be letters, digits, '.', '_' or '-'")
    with disk_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            number = 1 + max((_run_number(run) for run in parent.iterdir()), default=-1)
            run_dir = parent / f"{number:05d}-{name}"
            try:
                run_dir.mkdir()
            except FileExistsError:  # another process took this number in between
                continue
            return run_dir


def claim_run(parent: Path, name: str, conf: dict) -> Path:
    """Create a run folder with its conf.json in the main process; return it in all processes of a launch."""

    def claim() -> Path:
        run_dir = new_run_dir(parent, name)
        try:
            save_json(run_dir / "conf.json", {"format": FORMAT, "provenance": provenance(), **conf})
        except BaseException:
            with contextlib.suppress(OSError):  # without settings it would be no run, and take a number
                run_dir.rmdir()
            raise
        return run_dir

    return decided_once(claim)


def provenance() -> dict[str, str]:
    """Return what a result depends on besides the settings: git commit, versions and kind of machine."""
    repository, commit = Path(__file__).resolve().parents[2], "unknown"  # of a copy without its history
    command = ["git", "-C", str(repository), "describe", "--always", "--dirty", "--abbrev=12"]
    if (repository / ".git").exists():  # else git would describe a repository around this one
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "commit": commit,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device,
    }


def open_spectrogram(
    config: SpectrogramConfig,
    phase_dir: Path,
    phase_run: str,
    gain: Gain | None = None,
    device: torch.device | None = None,
) -> Spectrogram:
    """Return the `Spectrogram` of these settings, with the trained network if phase='learned'.

    Args:
        phase_dir, phase_run: as in `find_phase`.
        gain: as in `Spectrogram`.
        device: of the phase network only; None picks the best one.

    Raises:
        CheckpointError: phase='learned', but there is no such run, or it was trained for other magnitudes.
    """
    if config.phase != "learned":
        return Spectrogram(config, gain)
    return Spectrogram(config, gain, load_phase(find_phase(config, phase_dir, phase_run), config, device))


def find_phase(config: SpectrogramConfig, phase_dir: Path, phase_run: str) -> Path:
    """Return the run whose learned phase decodes spectrograms of `config`.

    Args:
        phase_dir: parent of the runs, `Models/phase`.
        phase_run: name of a run there or in `Models/released`; "latest": the newest finished run there that
            fits, else the released one that fits.

    Raises:
        CheckpointError: there is no such run, or none that fits.
    """
    if phase_run != LATEST:
        return named_run(Path(phase_dir).parent, Path(phase_dir).name, phase_run)

    def fits(run: Run) -> bool:
        return run.is_finished("phase.train") and not misfits(run.config("spectrogram"), config)

    run = find_run((Path(phase_dir), RELEASED), fits=fits)
    if run is None:
        raise CheckpointError(
            f"there is no learned phase for this spectrogram in {phase_dir}, and none came with the "
            "repository: train one to its end (Train Phase, with phase='pghi' till then), or set phase='pghi'"
        )
    return run.folder


def load_phase(run_dir: Path, config: SpectrogramConfig, device: torch.device | None = None) -> LearnedPhase:
    """Load the newest EMA weights of a run for spectrograms of `config`.

    Raises:
        CheckpointError: the folder is not a run, has no weights, or they were trained for other magnitudes.
    """
    run = Run(run_dir)
    theirs = run.config("spectrogram")
    if wrong := misfits(theirs, config):
        raise CheckpointError(
            f"the phase of {run.name} was learned for another spectrogram ({'; '.join(wrong)}): "
            "train one on this (Train Phase), name another in phase.run, or set phase='pghi'"
        )
    network = run.load_into(PhaseNet(run.config("phase.network"), theirs))
    device = device or pick_device()
    learned = LearnedPhase(network.to(device, memory_format=torch.channels_last), resolve_precision("auto"))
    learned.run_dir = run.folder
    return learned


def with_inverse_of(config: SpectrogramConfig, other: SpectrogramConfig) -> SpectrogramConfig:
    """Return `config` with those settings of `other` that affect only the inverse."""
    return replace(config, **{name: getattr(other, name) for name in INVERSE_ONLY})


def _readable_and(fits: Callable[[Run], bool], run: Run) -> bool:
    try:
        return fits(run)
    except CheckpointError:
        return False


def _by_number(run: Path) -> tuple[int, str]:
    return _run_number(run), run.name


def _run_number(run: Path) -> int:
    match = _RUN_NAME.match(run.name)
    return int(match.group(1)) if match else -1
