"""What a piece of music is asked for with: it makes the piece, and writes the lines that make it again."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.FileEditing import FileEditor
from Libraries.Runs.Music import make_music
from Libraries.Runs.Run import RELEASED, Run
from Libraries.Runs.Settings import Settings, changed, differences
from Libraries.Sampling.Editing import EditConfig
from Libraries.Sampling.Guidance import GuidanceConfig
from Libraries.Sampling.Loop import Callback, SamplerConfig, switch_sampler

REPOSITORY = RELEASED.parents[1]
SHORT = {"steps": "sampler.num_inference_steps", "guidance": "guidance.scale"}
PYTHON = """\
from pathlib import Path
from Libraries.Runs import DiffusionRun, MusicRequest
from Libraries.Sound import save_audio

request = MusicRequest.of({options})
model = DiffusionRun.load(request.run)
save_audio(Path({file!r}), request.make(model), model.spectrogram.config.sample_rate)"""


@dataclass(frozen=True)
class MusicRequest:
    """A piece of music by a run; `MusicRequest.of` begins with the run's own settings."""

    run: Path  # its folder
    sampler: SamplerConfig
    guidance: GuidanceConfig
    edit: EditConfig  # overlap and resamplings of a piece that is longer than a clip
    seed: int = 0  # another seed, other music
    seconds: float | None = None  # length in s; None: one clip
    label: str | None = None  # one of the run's classes; None: no label

    @classmethod
    def of(
        cls,
        run: Path,
        seed: int = 0,
        seconds: float | None = None,
        label: str | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        changes: dict[str, Any] | None = None,
    ) -> "MusicRequest":
        """Return a request in which all that is None is as the run's own settings have it.

        Args:
            run: its folder.
            sampler: another comes as it is at its best.
            steps: of the sampler.
            guidance: its scale; 1: none.
            changes: other fields by path, as `{"sampler.eta": 0.5}`.

        Raises:
            ValueError: there is no such sampler or field, or a number is impossible.
            CheckpointError: the folder holds no run.
        """
        own = Run(run).settings
        begun = cls(run, begun_sampler(own, sampler), own.guidance, own.edit, seed, seconds, label)
        short = {SHORT["steps"]: steps, SHORT["guidance"]: guidance}
        given = {path: value for path, value in short.items() if value is not None}
        return changed(begun, given | (changes or {}))

    def make(self, model: DiffusionRun, callback: Callback | None = None) -> Tensor:
        """Return the waveform (channels, L).

        Args:
            model: `DiffusionRun.load(self.run)`.
            callback: sees every step of every sampling.

        Raises:
            ValueError: the run does not know the label, or a number is impossible; the sentence says which.
            CheckpointError: as `DiffusionRun.denoiser`.
        """
        return make_music(
            model, self.seed, self.seconds, self.sampler, self.edit,
            label=self.label_of(model), guidance=self.guidance, callback=callback,
        )  # fmt: skip

    def editor(self, model: DiffusionRun, callback: Callback | None = None) -> FileEditor:
        """Return an editor of files that samples in the same way; arguments and errors as of `make`."""
        editor = model.editor(
            self.sampler, self.edit.resamplings,
            labels=self.label_of(model), guidance=self.guidance, callback=callback,
        )  # fmt: skip
        return FileEditor(model, editor)

    def label_of(self, model: DiffusionRun) -> Tensor | None:
        """Return the label, int64 (1,), or None for no label; a ValueError names the labels there are."""
        return None if self.label is None else model.label_of(self.label)

    @property
    def name(self) -> str:
        """What a file of this music is called, without suffix."""
        return f"{self.label or 'music'}-{self.seed}"

    def shell_line(self, suffix: str = ".flac") -> str:
        """Return the line that makes the file again, for a shell in the repository's folder."""
        folder = self.run.absolute()
        run = folder.name if folder.parent == RELEASED else _seen_from_repository(folder)
        options = {"run": run, **self._given()}
        words = [f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in options.items()]
        return f"{_command()} -o {shlex.quote(self.name + suffix)} {' '.join(words)}"

    def python_lines(self, suffix: str = ".flac") -> str:
        """Return the lines that make the file again, for Python in the repository's folder."""
        given = self._given()
        changes = {name: given.pop(name) for name in list(given) if "." in name}
        given |= {"changes": changes} if changes else {}
        options = [f"Path({str(self.run.absolute())!r})", *(f"{name}={v!r}" for name, v in given.items())]
        return PYTHON.format(options=", ".join(options), file=self.name + suffix)

    def _given(self) -> dict[str, Any]:
        """Return the seed and what differs from the run's own settings, by its option in a shell."""
        own, name = Run(self.run).settings.sampler.name, self.sampler.name
        begun = MusicRequest.of(self.run, sampler=name)
        named = {} if name == own else {"sampler": name}
        given = {"seed": self.seed, **named, **differences(begun, self)}
        short = {path: name for name, path in SHORT.items()}
        return {short.get(path, path): value for path, value in given.items()}


def begun_sampler(settings: Settings, name: str | None) -> SamplerConfig:
    """Return the sampler of a run's settings, or another with as many steps as it is at its best."""
    own = settings.sampler
    return own if name in (None, own.name) else switch_sampler(own, name, own.num_inference_steps)


def _command() -> str:
    """Return how a shell calls `generate`: the script of a copy of the repository, or what pip installed."""
    if not (REPOSITORY / "pyproject.toml").is_file():
        return "ma-ddpm generate"
    return f"{shlex.quote(str(_seen_from_repository(Path(sys.executable))))} MainScripts/generate.py"


def _seen_from_repository(path: Path) -> Path:
    return path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path
