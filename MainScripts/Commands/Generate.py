"""Generate a piece of music of any length, with the released model or a run of your own.

    ma-ddpm generate -o choir.flac --label choir --seconds 60 --seed 3
    ma-ddpm generate -o mine.wav --run newest --picture
    ma-ddpm generate -o mine.ogg --run Models/diffusion/00003-CPU --steps 50 --guidance 1

The suffix chooses the format: wav, flac, ogg, mp3 and others. Sampler, guidance and edit begin as in the
run's own settings. `--sampler ddim` takes another sampler as it is at its best; `--steps` and `--guidance`
are short for `--sampler.num-inference-steps` and `--guidance.scale`. The same options give the same music
again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from Commands.Options import Output, read_of_run
from Libraries.Plots import plot_waveform_spectrograms, save_figure
from Libraries.Runs import RUNTIMES, MusicRequest
from Libraries.Runs.Run import RELEASED_MODEL
from Libraries.Sound.Audio import audio_format, save_audio


@dataclass(frozen=True, kw_only=True)
class Generate(MusicRequest):
    """The options: what the music is asked for with, and its file."""

    output: Output  # file to write
    run: Path = Path(RELEASED_MODEL)  # the released one, newest, or the folder or name of another
    ema_length: float | None = None  # of the averaged weights, relative to the training; None: as kept
    runtime: Literal["torch", "onnx"] = "torch"  # that computes the networks
    picture: bool = False  # also write the spectrogram, as png


def main(arguments: Sequence[str]) -> None:
    """Generate the music and write the file."""
    options = read_of_run(Generate, arguments, __doc__)
    audio_format(options.output)  # refused now, and not after a minute of music
    model = RUNTIMES[options.runtime].load(options.run, ema_length=options.ema_length)
    music, rate = options.make(model), model.spectrogram.config.sample_rate
    save_audio(options.output, music, rate)
    print(f"{options.output}: {music.shape[-1] / rate:.1f} s, by {model.run.folder}")
    if options.picture:
        picture = options.output.with_suffix(".png")
        title = f"{options.label or 'music'}, seed {options.seed}"
        figure = plot_waveform_spectrograms([music], [title], rate, model.run.name, columns=1, width=13)
        save_figure(figure, picture)
        print(picture)
