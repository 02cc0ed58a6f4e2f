"""Change a sound file: make a stretch anew, vary it, continue or loop the file, restore highs.

    ma-ddpm edit inpaint song.flac -o new.flac --start 12 --stop 13.5
    ma-ddpm edit inpaint song.flac -o new.flac --start 12 --stop 13.5 --band 2000 6000
    ma-ddpm edit vary song.flac -o new.flac --start 12 --edit.strength 0.3
    ma-ddpm edit continue song.flac -o longer.flac --edit.continue-seconds 30
    ma-ddpm edit loop song.flac -o loop.wav --start 12
    ma-ddpm edit restore old.wav -o restored.flac

What is outside the stretch stays as it was, at the rate and with the channels of the model. `restore` uses
the newest upsampler (`Train Upsampler.ipynb`), and of the options `--seed` and `--cut-frequency`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from torch import Tensor

from Commands.Options import Folder, Output, read_of_run
from Conf import conf
from Libraries.Evaluation import restore_file
from Libraries.Plots import plot_waveform_spectrograms, save_figure
from Libraries.Runs import DiffusionRun, MusicRequest, Stretch, load_upsampler
from Libraries.Runs.Run import RELEASED_MODEL
from Libraries.Runs.Upsampling import find_upsampler
from Libraries.Sampling import EditConfig, GuidanceConfig, SamplerConfig
from Libraries.Sound.Audio import audio_format, save_audio
from Libraries.Sound.Stereo import load_channels

Change = Literal["inpaint", "vary", "continue", "loop", "restore"]
OF = {  # the changes that each option is for
    "start": ("inpaint", "vary", "loop"),
    "stop": ("inpaint", "vary"),
    "band": ("inpaint", "vary"),
    "cut_frequency": ("restore",),
}


@dataclass(frozen=True)
class Edit:
    """The options.

    Raises:
        ValueError: an option is for another change.
    """

    change: Annotated[Change, tyro.conf.Positional]  # what is made of the file
    file: Folder  # any format that can be read
    output: Output  # file to write
    sampler: SamplerConfig
    guidance: GuidanceConfig
    edit: EditConfig
    start: float | None = None  # s; None: the beginning
    stop: float | None = None  # s; None: edit.gap_seconds later
    band: tuple[float, float] | None = None  # Hz; None: all frequencies
    cut_frequency: float | None = None  # Hz up to which the file is complete; None: found by listening
    run: Path = Path(RELEASED_MODEL)  # the released one, newest, or the folder or name of another
    label: str | None = None  # one of the run's classes; None: no label
    seed: int = 0  # another seed, other music
    picture: bool = False  # also write the spectrograms before and after, as png

    def __post_init__(self):
        for name, changes in OF.items():
            if getattr(self, name) is not None and self.change not in changes:
                raise ValueError(f"--{name.replace('_', '-')} is for {' and '.join(changes)} alone")


def main(arguments: Sequence[str]) -> None:
    """Make the change and write the file."""
    options = read_of_run(Edit, arguments, __doc__)
    audio_format(options.output)  # refused now, and not after a minute of work
    before, after, rate = restored(options) if options.change == "restore" else edited(options)
    save_audio(options.output, after, rate)
    print(f"{options.output}: {after.shape[1] / rate:.1f} s")
    if options.picture:
        picture = options.output.with_suffix(".png")
        figure = plot_waveform_spectrograms(
            [before, after], ["before", "after"], rate, f"{options.change}: {options.file.name}"
        )
        save_figure(figure, picture)
        print(picture)


def restored(options: Edit) -> tuple[Tensor, Tensor, int]:
    """Return the file before and after, and the rate, with its upper band by the newest upsampler."""
    run = find_upsampler(conf)
    if run is None:
        raise FileNotFoundError(f"no upsampler in {conf.models_dir}: train one first (Train Upsampler.ipynb)")
    upsampler = load_upsampler(run.folder)
    found = restore_file(upsampler, options.file, cut_frequency=options.cut_frequency, seed=options.seed)
    return found.original, found.waveform, upsampler.spectrogram.config.sample_rate


def edited(options: Edit) -> tuple[Tensor, Tensor, int]:
    """Return the file before and after, and the rate, with one of the other changes."""
    edit, seed = options.edit, options.seed
    request = MusicRequest(options.run, options.sampler, options.guidance, edit, seed, label=options.label)
    model = DiffusionRun.load(request.run)
    editor, config = request.editor(model), model.spectrogram.config
    before, start = load_channels(options.file, config.channels, config.sample_rate), options.start or 0.0
    if options.change == "continue":
        after = editor.extend(before, edit.continue_seconds, edit.overlap_seconds, seed)
    elif options.change == "loop":
        after = editor.loop(before, start, edit.loop_seconds, edit.overlap_seconds, seed)
    else:
        stop = start + edit.gap_seconds if options.stop is None else options.stop
        strength = edit.strength if options.change == "vary" else 1.0
        after = editor.remake(before, Stretch(start, stop, *(options.band or ())), seed, strength)
    return before, after, config.sample_rate
