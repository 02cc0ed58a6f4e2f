"""Pictures of audio and tensors, as matplotlib `Figure`s; compared pictures share their colour limits."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from Libraries.Diffusion import NoiseSchedule
from Libraries.Disk import write_then_rename
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Sound.Stereo import mid_side
from Libraries.Utils import spread_indices

VIEW_N_FFT = 1024  # of the spectrograms of waveforms, whatever the model's own representation is
VIEW_RANGE = 80.0  # dB shown below the loudest value of a figure
ERROR_RANGE = 20.0  # dB; larger errors get the same colour
CMAP = "magma"
SIDES = (", mid", ", side")  # behind the titles of stereo


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, completely or not at all."""
    write_then_rename(path, lambda file: figure.savefig(file, dpi=110, format="png"))


def plot_waveform_spectrograms(
    waveforms: Sequence[Tensor],
    titles: Sequence[str],
    sample_rate: int,
    title: str,
    columns: int = 4,
    width: float = 3.4,
) -> Figure:
    """Draw waveforms as spectrograms: kHz upwards, seconds to the right, dB below the loudest of all.

    Of stereo, a row of mids has the row of their sides below it.

    Args:
        waveforms: each (L,), (1, L) or (2, L) in [-1, 1], of one number of channels.
        titles: one per waveform.
        sample_rate: Hz.
        width: of a picture in inches; long music needs more.
    """
    levels = [[_level_in_db(channel) for channel in _channels_of(waveform)] for waveform in waveforms]
    top = max(float(level.max()) for channels in levels for level in channels)
    figure, axes, shown = _grid_of_channels(levels, titles, columns, title, width)
    for axis, (level, name) in zip(axes, shown, strict=True):
        seconds = level.shape[1] * (VIEW_N_FFT // 4) / sample_rate
        image = axis.imshow(
            (level - top).numpy(), origin="lower", aspect="auto", cmap=CMAP, vmin=-VIEW_RANGE, vmax=0,
            extent=(0, seconds, 0, sample_rate / 2000),
        )  # fmt: skip
        axis.set(title=name, xlabel="time (s)", ylabel="frequency (kHz)")
    figure.colorbar(image, ax=axes.tolist(), label="dB below the loudest", shrink=0.8)
    return figure


def draw_waveform(axis, waveform: Tensor, sample_rate: int):
    """Draw a waveform (L,) as a spectrogram in dB below its loudest value; return the image."""
    level = _level_in_db(waveform)
    seconds = len(waveform) / sample_rate
    image = axis.imshow(
        (level - level.max()).numpy(), origin="lower", aspect="auto", cmap=CMAP, vmin=-VIEW_RANGE, vmax=0,
        extent=(0, seconds, 0, sample_rate / 2000),
    )  # fmt: skip
    axis.set(xlabel="time (s)", ylabel="frequency (kHz)")
    return image


def plot_comparison(generated: Tensor, real: Tensor, sample_rate: int, title: str, count: int = 4) -> Figure:
    """Draw `count` generated waveforms (N, C, L) above as many real ones, on one colour scale."""
    count = min(count, len(generated), len(real))
    spread = spread_indices(len(real), count)
    names = [f"generated {i}" for i in range(count)] + [f"real {i}" for i in range(count)]
    waveforms = [*generated[:count], *real[spread]]
    return plot_waveform_spectrograms(waveforms, names, sample_rate, title, columns=count)


def plot_tensors(
    x0: Tensor, titles: Sequence[str], config: SpectrogramConfig, title: str, columns: int = 4
) -> Figure:
    """Draw model tensors (N, C, F, T): rows upwards (with their Hz), seconds to the right.

    Drawn is the first channel; of stereo, a row of mids has the row of their sides below it.
    """
    limits = (-1.0, 1.0) if config.value_range == "minus_one_to_one" else _limits(x0)
    pictures = [[tensor[channel] for channel in _drawn(config).values()] for tensor in x0]
    figure, axes, shown = _grid_of_channels(pictures, titles, columns, title)
    for axis, (picture, name) in zip(axes, shown, strict=True):
        image = _draw_picture(axis, picture, name, config, limits, CMAP)
    figure.colorbar(image, ax=axes.tolist(), label="normalised value (x0)", shrink=0.8)
    return figure


def plot_reconstructions(
    x0: Tensor, reconstruction: Tensor, config: SpectrogramConfig, title: str, count: int = 4
) -> Figure:
    """Draw a row each of originals, reconstructions on the same colour scale, and differences.

    Of stereo, a row is of mids or of sides.

    Args:
        x0, reconstruction: (N, C, F, T), of which `count` are drawn.
    """
    count = min(count, len(x0))
    x0, reconstruction = x0[:count].float().cpu(), reconstruction[:count].float().cpu()
    difference = reconstruction - x0
    drawn = _drawn(config)
    figure, axes = _grid(3 * len(drawn) * count, count, title)
    value = (-1.0, 1.0) if config.value_range == "minus_one_to_one" else _limits(x0)
    error = float(_limits(difference.abs())[1])
    rows = (
        ("original", x0, value, CMAP),
        ("reconstruction", reconstruction, value, CMAP),
        ("difference", difference, (-error, error), "coolwarm"),
    )
    lines = iter(axes.reshape(-1, count))
    for name, tensors, limits, cmap in rows:
        label = "reconstruction - original" if name == "difference" else "normalised value (x0)"
        for side, channel in drawn.items():
            line = next(lines)
            for i, (axis, tensor) in enumerate(zip(line, tensors, strict=True)):
                image = _draw_picture(axis, tensor[channel], f"{name} {i}{side}", config, limits, cmap)
            figure.colorbar(image, ax=line.tolist(), label=label, shrink=0.8)
    return figure


def plot_trajectory(
    states: Sequence[tuple[int, Tensor, Tensor]], config: SpectrogramConfig, title: str
) -> Figure:
    """Draw one sample at several steps: x_t above, the x0 predicted from it below.

    Args:
        states: (t, x_t, x0) at some steps; the tensors are (1, C, F, T).
    """
    tensors = torch.cat([x_t for _, x_t, _ in states] + [x0 for _, _, x0 in states])
    names = [f"x_t, t = {t}" for t, _, _ in states] + [f"predicted x0, t = {t}" for t, _, _ in states]
    return plot_tensors(tensors.clamp(-1, 1), names, config, title, columns=len(states))


def plot_noising(
    x0: Tensor, schedule: NoiseSchedule, config: SpectrogramConfig, title: str, count: int = 6
) -> Figure:
    """Draw a clip (C, F, T) with more and more noise, as the network sees it in training."""
    t = torch.linspace(0, schedule.num_train_timesteps - 1, count).long()
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).expand(count, *x0.shape)
    x_t = schedule.add_noise(x0.expand(count, *x0.shape), noise, t)
    names = [
        f"t = {step}, SNR {10 / np.log(10) * schedule.log_snr[step].item():.0f} dB" for step in t.tolist()
    ]
    return plot_tensors(x_t, names, config, title, columns=count)


def plot_inverses(sound: dict[str, Tensor], sample_rate: int, title: str) -> Figure:
    """Draw clips and their decodings by several inverses, then the error of each, on shared colour scales.

    Args:
        sound: waveforms (B, 1, L) by name, the original first; one row of pictures per clip.
        sample_rate: Hz.
    """
    names, count = list(sound), len(next(iter(sound.values())))
    columns = 2 * len(names) - 1
    figure, axes = _grid(count * columns, columns, title)
    for row in range(count):
        levels = [_level_in_db(sound[name][row, 0]) for name in names]
        true = levels[0]
        floor = float(true.max()) - VIEW_RANGE
        errors = [level.clamp(min=floor) - true.clamp(min=floor) for level in levels[1:]]
        extent = (0, true.shape[1] * (VIEW_N_FFT // 4) / sample_rate, 0, sample_rate / 2000)
        shared = {"origin": "lower", "aspect": "auto", "extent": extent}
        ours = axes[row * columns : (row + 1) * columns]
        for axis, name, level in zip(ours, names, levels, strict=False):
            limits = {"vmin": -VIEW_RANGE, "vmax": 0, "cmap": CMAP}
            image = axis.imshow((level - true.max()).numpy(), **shared, **limits)
            axis.set(title=name)
        figure.colorbar(image, ax=ours[: len(names)].tolist(), label="dB below the loudest", shrink=0.8)
        for axis, name, error in zip(ours[len(names) :], names[1:], errors, strict=True):
            limits = {"vmin": -ERROR_RANGE, "vmax": ERROR_RANGE, "cmap": "coolwarm"}
            image = axis.imshow(error.numpy(), **shared, **limits)
            axis.set(title=f"{name} - {names[0]}")
        figure.colorbar(image, ax=ours[len(names) :].tolist(), label="error (dB)", shrink=0.8)
        for axis in ours:
            axis.set(xlabel="time (s)", ylabel="frequency (kHz)")
    return figure


def _drawn(config: SpectrogramConfig) -> dict[str, int]:
    """Return which channels of a model tensor are drawn, by what a title says of them: "" of mono."""
    return {"": 0} if config.channels == 1 else {SIDES[0]: 0, SIDES[1]: config.shape[0] // 2}


def _channels_of(waveform: Tensor) -> Tensor:
    """Return mid and side (2, L) of a waveform (2, L), and a mono one, (L,) or (1, L), as (1, L)."""
    return mid_side(torch.atleast_2d(torch.as_tensor(waveform)).float().cpu()[None])[0]


def _grid_of_channels(
    pictures: list[list[Tensor]], titles: Sequence[str], columns: int, title: str, width: float = 3.4
) -> tuple[Figure, np.ndarray, list[tuple[Tensor, str]]]:
    """Return a figure, its axes in order, and each axis's picture and title.

    Args:
        pictures: of every clip one, or those of mid and side, which get a row each.
    """
    columns, sides = min(columns, len(pictures)), SIDES if len(pictures[0]) == 2 else ("",)
    clips, shown = list(zip(pictures, titles, strict=False)), []
    for row in (clips[first : first + columns] for first in range(0, len(clips), columns)):
        for channel, side in enumerate(sides):
            shown += [(clip[channel], f"{name}{side}") for clip, name in row]
            shown += [None] * (columns - len(row) if channel + 1 < len(sides) else 0)
    figure, axes = _grid(len(shown), columns, title, width)
    for axis, cell in zip(axes, shown, strict=True):
        if cell is None:
            axis.remove()
    filled = [cell is not None for cell in shown]
    return figure, axes[filled], [cell for cell in shown if cell is not None]


def _draw_picture(axis, picture: Tensor, name: str, config: SpectrogramConfig, limits, cmap: str):
    """Draw a channel (F, T) of a model tensor with its Hz and seconds; return the image."""
    seconds = config.n_frames * config.hop_length / config.sample_rate
    image = axis.imshow(
        picture.float().cpu().numpy(), origin="lower", aspect="auto", cmap=cmap, vmin=limits[0],
        vmax=limits[1], extent=(0, seconds, 0, config.n_rows),
    )  # fmt: skip
    axis.set(title=name, xlabel="time (s)", ylabel="frequency (Hz)")
    _label_rows_in_hz(axis, config)
    return image


def _level_in_db(waveform: Tensor) -> Tensor:
    """Return 20·log10 of the magnitude spectrogram (F, T) of a waveform (L,)."""
    window = torch.hann_window(VIEW_N_FFT)
    spectrum = torch.stft(
        waveform.float().cpu(),
        VIEW_N_FFT,
        VIEW_N_FFT // 4,
        window=window,
        return_complex=True,
    )
    return 20 * torch.log10(spectrum.abs().clamp(min=1e-6))


def _grid(count: int, columns: int, title: str, width: float = 3.4) -> tuple[Figure, np.ndarray]:
    """Return a figure with one axis per picture; the axes are a flat array."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns + 1, 2.6 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axis in axes[count:]:
        axis.remove()
    figure.suptitle(title)
    return figure, axes[:count]


def _limits(x0: Tensor) -> tuple[float, float]:
    low, high = torch.quantile(
        x0.float().flatten()[:: max(1, x0.numel() // 100_000)], torch.tensor([0.01, 0.99])
    )
    return float(low), float(high)


def _label_rows_in_hz(axis, config: SpectrogramConfig) -> None:
    """Label rows with their frequencies: not every representation has evenly spaced rows."""
    rows = np.linspace(0, config.n_rows - 1, 6).round().astype(int)
    frequencies = config.row_frequencies
    axis.set_yticks(rows + 0.5, [f"{frequencies[row]:.0f}" for row in rows])
