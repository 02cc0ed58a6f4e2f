"""Pictures for a page: one on which a stretch of music is chosen, and the film of a sampling."""

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from Libraries.Disk import write_whole
from Libraries.Plots.SpectrogramPlots import draw_waveform, plot_tensors
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig

PLACE = (0.08, 0.17, 0.9, 0.78)  # left, bottom, width and height of the spectrogram in its picture
EDGE = 0.03  # of the height: a box that comes so near to the lowest or highest frequency means all up to it
FRAME_MS, LAST_MS = 400, 2_000  # how long a film shows a step, and its end


def plot_to_choose(waveform: Tensor, sample_rate: int) -> Figure:
    """Draw music (C, L) as a spectrogram that fills a known place of its picture (`chosen_stretch`)."""
    figure = Figure(figsize=(9, 3.2))
    axis = figure.add_axes(PLACE)
    draw_waveform(axis, waveform.mean(0), sample_rate)
    return figure


def chosen_stretch(
    box: Sequence[float], seconds: float, sample_rate: int
) -> tuple[float, float, float, float]:
    """Return what a box on the picture of `plot_to_choose` means: from s, to s, from Hz, to Hz.

    Args:
        box: two opposite corners (x, y, x, y) as fractions of the picture's width and height, from its upper
            left.
        seconds: length of the music.
    """
    left, bottom, width, height = PLACE
    times = sorted(min(max((x - left) / width, 0), 1) * seconds for x in box[::2])
    heights = sorted(min(max((1 - y - bottom) / height, 0), 1) for y in box[1::2])
    low = 0.0 if heights[0] < EDGE else heights[0]
    high = 1.0 if heights[1] > 1 - EDGE else heights[1]
    return times[0], times[1], low * sample_rate / 2, high * sample_rate / 2


def save_film(states: Sequence[tuple[int, Tensor, Tensor]], config: SpectrogramConfig, path: Path) -> None:
    """Write a sampling as a GIF: at every step x_t, and beside it the x0 that is predicted from it.

    Args:
        states: (t, x_t, x0) at every step; the tensors are (1, C, F, T).
    """
    frames = []
    for number, (t, x_t, x0) in enumerate(tqdm(states, desc="film", unit="frame", leave=False), start=1):
        pair, names = torch.cat([x_t, x0]).clamp(-1, 1), ["x_t", "x0 predicted from it"]
        title = f"step {number} of {len(states)}, t = {t}"
        file = io.BytesIO()
        plot_tensors(pair, names, config, title, columns=2).savefig(file, dpi=80, format="png")
        frames.append(Image.open(file).convert("P", palette=Image.Palette.ADAPTIVE))
    film = io.BytesIO()
    durations = [*[FRAME_MS] * (len(frames) - 1), LAST_MS]
    frames[0].save(
        film, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, disposal=2
    )
    write_whole(path, film.getvalue())
