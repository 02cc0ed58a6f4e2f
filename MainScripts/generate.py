"""Generate a piece of music of any length, with the released model or a run of your own.

    python MainScripts/generate.py -o choir.flac --label choir --seconds 60 --seed 3
    python MainScripts/generate.py -o mine.wav --run newest --picture
    python MainScripts/generate.py -o mine.ogg --run Models/diffusion/00003-CPU --steps 50

The suffix chooses the format: wav, flac, ogg, mp3 and others. Where no option says otherwise, sampler and
guidance are those of the run's own settings. The same options give the same music again.
"""

import argparse
import sys
from pathlib import Path

from Conf import conf
from Libraries.Disk import exit_with_the_sentence
from Libraries.Plots import plot_waveform_spectrograms, save_figure
from Libraries.Runs import RUNTIMES, MusicRequest, find_diffusion
from Libraries.Runs.Run import RELEASED
from Libraries.Sampling import SAMPLERS
from Libraries.Sound.Audio import audio_format, save_audio
from Libraries.Training import CheckpointError

MODEL = "diffusion-cpu"  # in Models/released


def main() -> None:
    """Read the options and do what they ask for, or say in a sentence why not."""
    options = parse()
    try:
        with exit_with_the_sentence():
            generate(options)
    except (CheckpointError, FileNotFoundError, ValueError) as error:
        sys.exit(str(error))


def generate(options: argparse.Namespace) -> None:
    """Generate the music and write the file."""
    audio_format(options.output)  # refused now, and not after a minute of music
    model = RUNTIMES[options.runtime].load(folder_of(options.run))
    rate = model.spectrogram.config.sample_rate
    asked = ("seed", "seconds", "label", "sampler", "steps", "guidance")
    request = MusicRequest(model.run.folder, **{name: getattr(options, name) for name in asked})
    music = request.make(model)
    save_audio(options.output, music, rate)
    print(f"{options.output}: {music.shape[-1] / rate:.1f} s, by {model.run.folder}")
    if options.picture:
        picture, title = (
            options.output.with_suffix(".png"),
            f"{options.label or 'music'}, seed {options.seed}",
        )
        figure = plot_waveform_spectrograms([music], [title], rate, model.run.name, columns=1, width=13)
        save_figure(figure, picture)
        print(picture)


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    parser.add_argument("--run", default=MODEL, help=f"{MODEL} (released, the default), newest, or a folder")
    parser.add_argument("--label", help="one of the run's classes (default: no label)")
    parser.add_argument("--seconds", type=float, help="length (default: one clip)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sampler", choices=SAMPLERS, help="another method than the run's")
    parser.add_argument("--steps", type=int, help="of the sampler")
    parser.add_argument("--guidance", type=float, help="scale; 1: none")
    parser.add_argument("--runtime", choices=RUNTIMES, default="torch", help="of the networks")
    parser.add_argument("--picture", action="store_true", help="also write the spectrogram, as png")
    return parser.parse_args()


def folder_of(run: str) -> Path:
    """Return the folder of the released model, of the newest run in Conf.py's space, or the named one."""
    if run == MODEL:
        return RELEASED / MODEL
    return find_diffusion(conf) if run == "newest" else Path(run)


if __name__ == "__main__":
    main()
