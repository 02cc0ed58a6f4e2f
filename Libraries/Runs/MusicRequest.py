"""What a piece of music is asked for with: it makes the piece, and writes the lines that make it again."""

import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path

from torch import Tensor

from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.FileEditing import FileEditor
from Libraries.Runs.Music import make_music
from Libraries.Runs.Run import RELEASED
from Libraries.Runs.Settings import Settings
from Libraries.Sampling.Guidance import GuidanceConfig
from Libraries.Sampling.Loop import Callback, SamplerConfig, switch_sampler

REPOSITORY = RELEASED.parents[1]
PYTHON = """\
from pathlib import Path
from Libraries.Runs import DiffusionRun, MusicRequest
from Libraries.Sound import save_audio

request = MusicRequest({options})
model = DiffusionRun.load(request.run)
save_audio(Path({file!r}), request.make(model), model.spectrogram.config.sample_rate)"""


@dataclass(frozen=True)
class MusicRequest:
    """A piece of music by a run; what is None is as the run's own settings have it."""

    run: Path  # its folder
    seed: int
    seconds: float | None = None  # None: a clip
    label: str | None = None  # one of the run's classes; None: no label
    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None  # scale; 1: none

    def make(self, model: DiffusionRun, callback: Callback | None = None) -> Tensor:
        """Return the waveform (channels, L).

        Args:
            model: `DiffusionRun.load(self.run)`.
            callback: sees every step of every sampling.

        Raises:
            ValueError: the run does not know the label, or a number is impossible; the sentence says which.
            CheckpointError: as `DiffusionRun.denoiser`.
        """
        settings = model.run.settings
        return make_music(
            model, self.seed, self.seconds, self.sampler_of(settings), settings.edit,
            label=self.label_of(model), guidance=self.guidance_of(settings), callback=callback,
        )  # fmt: skip

    def editor(self, model: DiffusionRun, callback: Callback | None = None) -> FileEditor:
        """Return an editor of files that samples in the same way; arguments and errors as of `make`."""
        settings = model.run.settings
        editor = model.editor(
            self.sampler_of(settings), settings.edit.resamplings,
            labels=self.label_of(model), guidance=self.guidance_of(settings), callback=callback,
        )  # fmt: skip
        return FileEditor(model, editor)

    def label_of(self, model: DiffusionRun) -> Tensor | None:
        """Return the label, int64 (1,), or None for no label; a ValueError names the labels there are."""
        return None if self.label is None else model.label_of(self.label)

    def sampler_of(self, settings: Settings) -> SamplerConfig:
        """Return the run's sampler with what was asked for; another method comes as it is at its best."""
        own = settings.sampler
        steps = own.num_inference_steps if self.steps is None else self.steps
        if self.sampler in (None, own.name):
            return replace(own, num_inference_steps=steps)
        return switch_sampler(own, self.sampler, steps)

    def guidance_of(self, settings: Settings) -> GuidanceConfig:
        """Return the run's guidance, with the scale that was asked for."""
        return settings.guidance if self.guidance is None else replace(settings.guidance, scale=self.guidance)

    @property
    def name(self) -> str:
        """What a file of this music is called, without suffix."""
        return f"{self.label or 'music'}-{self.seed}"

    def shell_line(self, suffix: str = ".flac") -> str:
        """Return the line that makes the file again, for a shell in the repository's folder."""
        folder = self.run.absolute()
        if folder.parent == RELEASED:
            run = folder.name
        else:
            run = folder.relative_to(REPOSITORY) if folder.is_relative_to(REPOSITORY) else folder
        given = {**self._given(), "run": run}
        options = [f"--{name} {shlex.quote(str(value))}" for name, value in given.items()]
        return f"python MainScripts/generate.py -o {shlex.quote(self.name + suffix)} {' '.join(options)}"

    def python_lines(self, suffix: str = ".flac") -> str:
        """Return the lines that make the file again, for Python in the repository's folder."""
        given = {name: repr(value) for name, value in self._given().items()}
        given["run"] = f"Path({str(self.run.absolute())!r})"
        options = ", ".join(f"{name}={value}" for name, value in given.items())
        return PYTHON.format(options=options, file=self.name + suffix)

    def _given(self) -> dict:
        """Return what differs from the run's own, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}
