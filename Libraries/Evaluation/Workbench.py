"""What a page does with music, without the page: make, open, change, restore, look; results are files.

A page or any other face only asks for these and shows what comes back. Every result has a folder of its own.
"""

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from Libraries.Evaluation.OneClip import describe_music, describe_real, music_table, nearest_clip
from Libraries.Evaluation.Restoration import restore_file
from Libraries.Evaluation.Samples import record_trajectory
from Libraries.Measures import Described
from Libraries.Plots.Choosing import plot_to_choose, save_film
from Libraries.Plots.SpectrogramPlots import plot_tensors, plot_waveform_spectrograms, save_figure
from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.FileEditing import Stretch, load_short
from Libraries.Runs.MusicRequest import MusicRequest
from Libraries.Runs.Run import Run, latest_run, runs_of
from Libraries.Runs.Upsampling import load_upsampler
from Libraries.Sampling.Loop import Callback
from Libraries.Sound.Audio import load_audio, save_audio
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Training.Checkpoint import WEIGHTS
from Libraries.Utils import require

FORMATS = (".wav", ".flac", ".mp3")
MOST_SECONDS = 600.0  # of music that is made or opened
LENGTHS = f"(0, {MOST_SECONDS:g}]"
FILM_STEPS = 10  # at most
CHANGES = ("made anew", "varied", "continued", "made into a loop")
ANEW, VARIED, CONTINUED, LOOP = CHANGES


@dataclass(frozen=True)
class Piece:
    """Music in every format of `FORMATS`, and a picture of it; of a change, before and after."""

    files: list[Path]
    picture: Path
    before: Path | None = None  # a wav


@dataclass(frozen=True)
class Opened:
    """A file that is to be changed: its picture to choose a stretch on, and a stretch to begin with."""

    picture: Path
    seconds: float
    sample_rate: int  # of the model, to which the file is brought; Hz
    stretch: Stretch


@dataclass(frozen=True)
class Look:
    """What can be seen of music that was made."""

    film: Path  # a GIF
    table: str  # Markdown
    remark: str  # where the nearest training clip is from, or why there is none
    nearest: Piece | None


class Workbench:
    """Works with the runs below a folder of models; keeps what it makes below another folder.

    Models are kept in memory, two at a time. Every method raises an AudioError, ValueError, CheckpointError
    or OSError whose message is one sentence for who asked.
    """

    def __init__(self, models_dir: Path, folder: Path):
        self.models_dir, self.folder = models_dir, folder
        self.model = functools.lru_cache(maxsize=2)(DiffusionRun.load)
        self._upsampler = functools.lru_cache(maxsize=1)(load_upsampler)
        self._real = functools.lru_cache(maxsize=2)(self._described)

    def runs(self, kind: str = "diffusion") -> dict[str, Path]:
        """Return the folders of all runs of a kind, by name, the released ones first."""
        return runs_of(self.models_dir, kind)

    def labels(self, run: Path) -> list[str]:
        """Return the classes that a run was trained with; none if it was trained without."""
        own = Run(run)
        return own.conf["classes"] if own.settings.network.num_classes else []

    def make(self, request: MusicRequest, callback: Callback | None = None) -> Piece:
        """Make the music that is asked for."""
        if request.seconds is not None:
            require(LENGTHS, seconds=request.seconds)
        model = self.model(request.run)
        music, rate = request.make(model, callback), model.spectrogram.config.sample_rate
        title = f"{request.name}, by {model.run.name}"
        figure = plot_waveform_spectrograms([music], [""], rate, title, columns=1, width=9)
        return Piece(self._saved(music, rate, request.name), self._drawn(figure))

    def open(self, run: Path, file: Path) -> Opened:
        """Open a file as the model of a run hears it."""
        config = Run(run).config("spectrogram")
        music, rate = self._loaded(file, config), config.sample_rate
        seconds = music.shape[1] / rate
        middle, half = seconds / 2, min(seconds, config.kept_samples / rate) / 4
        stretch = Stretch(middle - half, middle + half, 0.0, rate / 2)
        return Opened(self._drawn(plot_to_choose(music, rate)), seconds, rate, stretch)

    def change(
        self,
        request: MusicRequest,
        file: Path,
        how: str,
        stretch: Stretch,
        strength: float,
        callback: Callback | None = None,
    ) -> Piece:
        """Change a file in one of the ways `CHANGES`.

        Args:
            request: says by which model, label and seed; its `seconds` are those that a continuation adds, or
                the length of a loop.
            stretch: what is made anew or varied; a loop begins where it does.
            strength: of a variation, 0 to 1.
        """
        require(CHANGES, change=how)
        model = self.model(request.run)
        before = self._loaded(file, model.spectrogram.config)
        editor, overlap = request.editor(model, callback), request.edit.overlap_seconds
        if how in (CONTINUED, LOOP):
            require(LENGTHS, seconds=request.seconds)
        if how == CONTINUED:
            after = editor.extend(before, request.seconds, overlap, request.seed)
        elif how == LOOP:
            after = editor.loop(before, stretch.first, request.seconds, overlap, request.seed)
        else:
            after = editor.remake(before, stretch, request.seed, strength if how == VARIED else 1.0)
        title = f"{how}, seed {request.seed}, by {model.run.name}"
        return self._both(before, after, model.spectrogram.config.sample_rate, title, file.stem)

    def restore(
        self,
        run: str | None,
        file: Path,
        seed: int,
        cut_frequency: float | None = None,
        callback: Callback | None = None,
    ) -> Piece:
        """Restore the lost upper band of a file (`Restoration.restore_file`).

        Args:
            run: name of an upsampler; None: the newest.
        """
        folder = self.runs("upsampler")[run] if run else latest_run(self.models_dir / "upsampler", WEIGHTS)
        model = self._upsampler(folder)
        self._loaded(file, model.spectrogram.config)  # refuses what is too long
        found = restore_file(model, file, cut_frequency=cut_frequency, seed=seed, callback=callback)
        title = f"restored above {found.cut_frequency / 1000:.1f} kHz, seed {seed}, by {folder.name}"
        rate = model.spectrogram.config.sample_rate
        return self._both(found.original, found.waveform, rate, title, file.stem)

    def look(self, request: MusicRequest, file: Path, callback: Callback | None = None) -> Look:
        """Look at music that was made: the film of its first clip, its quantities, the nearest training clip.

        Args:
            request: what it was asked for with.
            file: the music, from `make`.
        """
        model = self.model(request.run)
        config = model.spectrogram.config
        states = record_trajectory(
            model, request.sampler, request.seed, FILM_STEPS,
            labels=request.label_of(model), guidance=request.guidance, callback=callback,
        )  # fmt: skip
        film = self._new_folder() / "film.gif"
        save_film(states, config, film)
        music = describe_music(load_audio(file, config.sample_rate, mono=False), config.sample_rate)
        try:
            nearest, real = nearest_clip(model, states[-1][2]), self._real(request.run)
        except ValueError as missing:  # as the dataset of a released run
            return Look(film, music_table(music), f"No real clips to compare with: {missing}.", None)
        clips, names = [states[-1][2][0], nearest.x0], [request.name, f"{nearest.distance:.2f} away"]
        figure = plot_tensors(clips, names, config, "The clip and the training clip nearest to it", columns=2)
        heard = self._saved(model.to_audio(nearest.x0[None])[0], config.sample_rate, "nearest")
        remark = f"The nearest training clip is from {nearest.source}."
        return Look(film, music_table(music, real), remark, Piece(heard, self._drawn(figure)))

    def _described(self, run: Path) -> Described:
        return describe_real(self.model(run))

    def _loaded(self, file: Path, config: SpectrogramConfig) -> Tensor:
        return load_short(file, config.channels, config.sample_rate, MOST_SECONDS)

    def _both(self, before: Tensor, after: Tensor, rate: int, title: str, stem: str) -> Piece:
        figure = plot_waveform_spectrograms(
            [before, after], ["before", "after"], rate, title, columns=2, width=5
        )
        files = self._saved(after, rate, f"{stem}-changed")
        return Piece(files, self._drawn(figure), self._saved(before, rate, f"{stem}-before")[0])

    def _saved(self, music: Tensor, rate: int, name: str) -> list[Path]:
        files = [self._new_folder() / f"{name}{suffix}" for suffix in FORMATS]
        for file in files:
            save_audio(file, music, rate)
        return files

    def _drawn(self, figure: Figure) -> Path:
        path = self._new_folder() / "picture.png"
        save_figure(figure, path)
        return path

    def _new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder))
