"""Make the gallery of a released model: sounds, and their spectrograms, on one page.

    python benchmarks/gallery.py [--run diffusion-base] [--folder Results/gallery/diffusion-base]

Of every class the clips of seeds 0, 1 and 2, not picked. Of one class a minute of music and a loop, of the
first seconds of Mozart's K. 545 on our piano a second made anew, and a variation. `index.html` plays them.
"""

import argparse
import html
from pathlib import Path

import numpy as np
import torch
from common import REPOSITORY
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from Libraries.DemoMusic.Corpus import write_example
from Libraries.Disk import write_whole
from Libraries.Plots import plot_waveform_spectrograms, save_figure
from Libraries.Plots.SpectrogramPlots import CMAP
from Libraries.Runs import DiffusionRun, MusicRequest
from Libraries.Runs.FileEditing import Stretch, load_short
from Libraries.Runs.Run import RELEASED
from Libraries.Sound.Audio import save_audio

SEEDS = (0, 1, 2)
COLOURS, GREYS = 112, 16
PAUSE = 0.4  # s, between the clips of one file
LONG_CLASS, MINUTE, LOOP, ROUNDS = "string_quartet", 60.0, 8.0, 3  # s; s; times that the loop is played
GAP = Stretch(3.0, 4.0)
VARIED, STRENGTH = Stretch(3.0, 6.0), 0.5


class Page:
    """A folder of sounds and pictures, with a page of HTML that plays and shows them."""

    def __init__(self, path: Path, title: str, sample_rate: int):
        self.path, self.folder, self.parts = path, path.parent, []
        self.title, self.sample_rate = title, sample_rate
        self.folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, about: str, sound: Tensor, figure: Figure) -> None:
        """Write a waveform (channels, L) and its picture, and put them on the page."""
        save_audio(self.folder / f"{name}.ogg", sound, self.sample_rate)
        save_figure(figure, self.folder / f"{name}.png")
        in_few_colours(self.folder / f"{name}.png")
        self.parts.append(
            f'<h2>{html.escape(about)}</h2>\n<audio controls src="{name}.ogg"></audio><br>\n'
            f'<img src="{name}.png" alt="spectrograms of {html.escape(about)}">'
        )

    def add_clips(
        self, name: str, about: str, music: list[Tensor], titles: list[str], width: float = 4.5
    ) -> None:
        """Put waveforms (channels, L) on the page, as one sound with pauses and one picture."""
        pause = torch.zeros(music[0].shape[0], round(PAUSE * self.sample_rate))
        whole = torch.cat([part for clip in music for part in (clip, pause)][:-1], dim=1)
        columns = 1 if width > 4.5 else len(music)
        figure = plot_waveform_spectrograms(music, titles, self.sample_rate, about, columns, width)
        self.add(name, about, whole, figure)

    def write(self) -> None:
        """Write the page."""
        title = html.escape(self.title)
        head = f"<!doctype html><meta charset=utf-8><title>{title}</title>\n<h1>{title}</h1>\n"
        write_whole(self.path, (head + "\n".join(self.parts) + "\n").encode())


def in_few_colours(path: Path) -> None:
    """Write a picture again with half of the colour map's colours and some greys, in half the space."""
    colours = colormaps[CMAP](np.linspace(0, 1, COLOURS))[:, :3]
    greys = np.linspace(0, 1, GREYS)[:, None].repeat(3, axis=1)
    palette = Image.new("P", (1, 1))
    palette.putpalette((np.concatenate([colours, greys]) * 255).round().astype(np.uint8).tobytes())
    Image.open(path).convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE).save(
        path, optimize=True
    )


def add_classes(page: Page, model: DiffusionRun) -> None:
    """Add three clips of every class."""
    settings, classes = model.run.settings, model.run.conf["classes"]
    for label, name in enumerate(classes):
        labels = torch.full((len(SEEDS),), label)
        x0 = model.generate(SEEDS, settings.sampler, len(SEEDS), labels=labels, guidance=settings.guidance)
        page.add_clips(
            name, name.replace("_", " "), list(model.to_audio(x0)), [f"seed {seed}" for seed in SEEDS]
        )


def add_edits(page: Page, model: DiffusionRun) -> None:
    """Add long music, a loop, a gap filled and a variation."""
    settings, rate = model.run.settings, page.sample_rate
    long = MusicRequest.of(model.run.folder, seconds=MINUTE, label=LONG_CLASS)
    music = long.make(model)
    page.add_clips("minute", "A minute of string quartet", [music], ["seed 0"], width=13)
    overlap = settings.edit.overlap_seconds
    round_ = long.editor(model).loop(music, 0.0, LOOP, overlap, seed=0)
    page.add_clips(
        "loop", "A loop of its beginning, three times", [round_.repeat(1, ROUNDS)], ["seed 0"], width=13
    )
    example = page.folder / "example.wav"
    write_example(example)
    piano = load_short(example, settings.spectrogram.channels, rate, 60)
    example.unlink()
    editor = MusicRequest.of(model.run.folder, label="solo_piano").editor(model)
    filled = editor.remake(piano, GAP, seed=0)
    page.add_clips("gap", "Second 3 to 4 made anew", [piano, filled], ["before", "after"], width=9)
    varied = editor.remake(piano, VARIED, seed=0, strength=STRENGTH)
    page.add_clips("variation", "Second 3 to 6 varied by half", [piano, varied], ["before", "after"], width=9)


def main() -> None:
    """Parse the arguments and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", default="diffusion-base", help="a name in Models/released, or a folder")
    parser.add_argument("--folder", type=Path, help="without it Results/gallery/<run>")
    args = parser.parse_args()
    model = DiffusionRun.load(RELEASED / args.run)
    folder = args.folder or REPOSITORY / "Results" / "gallery" / model.run.name
    page = Page(
        folder / "index.html", f"The released model {model.run.name}", model.spectrogram.config.sample_rate
    )
    add_classes(page, model)
    add_edits(page, model)
    page.write()
    print(page.path)


if __name__ == "__main__":
    main()
