"""Pictures: functions that return a matplotlib `Figure`; what is compared shares its colour limits."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from Libraries.Diffusion import NoiseSchedule
from Libraries.SpectrogramConfig import SpectrogramConfig
from Libraries.Utils import spread_indices, write_then_rename

VIEW_N_FFT = 1024  # of the spectrograms of waveforms, whatever the model's own representation is
VIEW_RANGE = 80.0  # dB shown below the loudest value of a figure
ERROR_RANGE = 20.0  # dB of an error that is still told from a larger one
CMAP = "magma"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    write_then_rename(Path(path), lambda temporary: figure.savefig(temporary, dpi=110))


def plot_waveform_spectrograms(
    waveforms: Sequence[Tensor],
    titles: Sequence[str],
    sample_rate: int,
    title: str,
    columns: int = 4,
    width: float = 3.4,
) -> Figure:
    """Draw waveforms as spectrograms: kHz upwards, seconds to the right, dB below the loudest of all.

    Args:
        waveforms: each (L,) or (1, L) in [-1, 1].
        titles: one a waveform.
        sample_rate: Hz.
        width: of a picture in inches; long music wants more.
    """
    levels = [_level_in_db(torch.as_tensor(w).reshape(-1)) for w in waveforms]
    top = max(float(level.max()) for level in levels)
    figure, axes = _grid(len(levels), columns, title, width)
    for axis, level, name in zip(axes, levels, titles, strict=False):
        seconds = level.shape[1] * (VIEW_N_FFT // 4) / sample_rate
        image = axis.imshow(
            (level - top).numpy(), origin="lower", aspect="auto", cmap=CMAP, vmin=-VIEW_RANGE, vmax=0,
            extent=(0, seconds, 0, sample_rate / 2000),
        )  # fmt: skip
        axis.set(title=name, xlabel="time (s)", ylabel="frequency (kHz)")
    figure.colorbar(image, ax=axes.tolist(), label="dB below the loudest", shrink=0.8)
    return figure


def draw_waveform(axis, waveform: Tensor, sample_rate: int):
    """Draw a waveform (L,) as a spectrogram in dB below its own loudest; return the image."""
    level = _level_in_db(waveform)
    seconds = len(waveform) / sample_rate
    image = axis.imshow(
        (level - level.max()).numpy(), origin="lower", aspect="auto", cmap=CMAP, vmin=-VIEW_RANGE, vmax=0,
        extent=(0, seconds, 0, sample_rate / 2000),
    )  # fmt: skip
    axis.set(xlabel="time (s)", ylabel="frequency (kHz)")
    return image


def plot_comparison(generated: Tensor, real: Tensor, sample_rate: int, title: str, count: int = 4) -> Figure:
    """Draw `count` generated waveforms (N, 1, L) above as many real ones, in the same colours."""
    count = min(count, len(generated), len(real))
    spread = spread_indices(len(real), count)
    names = [f"generated {i}" for i in range(count)] + [f"real {i}" for i in range(count)]
    waveforms = [*generated[:count], *real[spread]]
    return plot_waveform_spectrograms(waveforms, names, sample_rate, title, columns=count)


def plot_tensors(
    x0: Tensor, titles: Sequence[str], config: SpectrogramConfig, title: str, columns: int = 4
) -> Figure:
    """Draw model tensors (N, C, F, T), first channel: rows upwards (with their Hz), seconds to the right."""
    figure, axes = _grid(len(x0), columns, title)
    limits = (-1.0, 1.0) if config.value_range == "minus_one_to_one" else _limits(x0)
    for axis, tensor, name in zip(axes, x0, titles, strict=False):
        image = _draw_tensor(axis, tensor, name, config, limits, CMAP)
    figure.colorbar(image, ax=axes.tolist(), label="normalised value (x0)", shrink=0.8)
    return figure


def plot_reconstructions(
    x0: Tensor, reconstruction: Tensor, config: SpectrogramConfig, title: str, count: int = 4
) -> Figure:
    """Draw originals, below them their reconstructions in the same colours, below those the differences.

    Args:
        x0, reconstruction: (N, C, F, T), of which `count` are drawn, first channel.
    """
    count = min(count, len(x0))
    x0, reconstruction = x0[:count].float().cpu(), reconstruction[:count].float().cpu()
    difference = reconstruction - x0
    figure, axes = _grid(3 * count, count, title)
    value = (-1.0, 1.0) if config.value_range == "minus_one_to_one" else _limits(x0)
    error = float(_limits(difference.abs())[1])
    rows = (
        ("original", x0, value, CMAP),
        ("reconstruction", reconstruction, value, CMAP),
        ("difference", difference, (-error, error), "coolwarm"),
    )
    for row, (name, tensors, limits, cmap) in enumerate(rows):
        for i, tensor in enumerate(tensors):
            image = _draw_tensor(axes[row * count + i], tensor, f"{name} {i}", config, limits, cmap)
        label = "reconstruction - original" if name == "difference" else "normalised value (x0)"
        figure.colorbar(image, ax=axes[row * count : (row + 1) * count].tolist(), label=label, shrink=0.8)
    return figure


def plot_trajectory(
    states: Sequence[tuple[int, Tensor, Tensor]], config: SpectrogramConfig, title: str
) -> Figure:
    """Draw one sample on its way: above x_t, below the x0 predicted from it.

    Args:
        states: (t, x_t, x0) at some steps; the tensors are (1, C, F, T).
    """
    tensors = torch.cat([x_t for _, x_t, _ in states] + [x0 for _, _, x0 in states])
    names = [f"x_t, t = {t}" for t, _, _ in states] + [f"predicted x0, t = {t}" for t, _, _ in states]
    return plot_tensors(tensors.clamp(-1, 1), names, config, title, columns=len(states))


def plot_noising(
    x0: Tensor, schedule: NoiseSchedule, config: SpectrogramConfig, title: str, count: int = 6
) -> Figure:
    """Draw a clip (C, F, T) under more and more noise: what the network sees in training."""
    t = torch.linspace(0, schedule.num_train_timesteps - 1, count).long()
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).expand(count, *x0.shape)
    x_t = schedule.add_noise(x0.expand(count, *x0.shape), noise, t)
    names = [
        f"t = {step}, SNR {10 / np.log(10) * schedule.log_snr[step].item():.0f} dB" for step in t.tolist()
    ]
    return plot_tensors(x_t, names, config, title, columns=count)


def plot_schedules(schedules: dict[str, NoiseSchedule], title: str = "Noise schedules") -> Figure:
    """Draw the signal's share and the log-SNR of named schedules over t."""
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, schedule in schedules.items():
        left.plot(schedule.alphas_cumprod.sqrt().numpy(), label=name)
        right.plot(10 / np.log(10) * schedule.log_snr.numpy(), label=name)
    left.set(title="Signal left in x_t", xlabel="timestep t", ylabel="sqrt(ᾱ)")
    right.set(title="Signal-to-noise ratio", xlabel="timestep t", ylabel="SNR (dB)")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(title)
    return figure


def plot_sampler_curves(
    curves: dict[str, list[tuple[int, float, float]]], floor: float, title: str
) -> Figure:
    """Draw how good samples are over the number of steps, and over the time they take.

    Args:
        curves: by sampler, (steps, seconds a clip, Frechet distance to the test split) of each count.
        floor: the distance of real training music.
    """
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for name, points in curves.items():
        steps, seconds, distances = zip(*points, strict=True)
        left.plot(steps, distances, marker="o", label=name)
        right.plot(seconds, distances, marker="o", label=name)
    left.set(title="over steps", xlabel="steps", ylabel="log-mel Frechet distance to the test split")
    right.set(title="over time", xlabel="seconds a clip")
    for axis in (left, right):
        axis.axhline(floor, color="black", linestyle="--", label="real training music (the floor)")
        axis.set(xscale="log", yscale="log")
        axis.grid(alpha=0.3, which="both")
    left.legend(fontsize=8)
    figure.suptitle(title)
    return figure


def plot_metrics(rows: list[dict[str, float]], title: str) -> Figure:
    """Draw a run's metrics.csv: loss and validation loss, validation by timestep, learning rate."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    losses, buckets, rates = figure.subplots(1, 3)
    for name in ("loss", "val_loss"):
        _curve(losses, rows, name, {"loss": "training", "val_loss": "validation, EMA weights"}[name])
    for name in sorted({key for row in rows for key in row if key.startswith("val_loss_")}):
        _curve(buckets, rows, name, name.removeprefix("val_loss_").replace("t", "t = "))
    _curve(rates, rows, "lr", "learning rate")
    losses.set(title="Loss", ylabel="mean squared error")
    buckets.set(title="Validation loss by timestep", ylabel="mean squared error")
    rates.set(title="Learning rate", ylabel="learning rate")
    for axis in (losses, buckets, rates):
        axis.set_xlabel("optimiser step")
        axis.grid(alpha=0.3)
        if axis.lines:
            positive = all((line.get_ydata() > 0).all() for line in axis.lines)  # learned weights go below
            axis.set_yscale("log" if axis is not rates and positive else "linear")
            axis.legend(fontsize=8)
    figure.suptitle(title)
    return figure


def plot_vae_metrics(rows: list[dict[str, float]], title: str) -> Figure:
    """Draw the metrics.csv of an autoencoder: the loss, what it reconstructs, and what its latent holds."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    losses, errors, kl = figure.subplots(1, 3)
    _curve(losses, rows, "loss", "training")
    _curve(losses, rows, "val_loss", "validation, EMA weights")
    _curve(errors, rows, "val_reconstruction", "reconstruction")
    _curve(errors, rows, "val_spectral", "differences of neighbours")
    _curve(kl, rows, "val_kl", "KL(posterior, prior)")
    losses.set(title="Loss, weighted", ylabel="loss a value")
    errors.set(title="Reconstruction term, validation", ylabel="error a value")
    kl.set(title="KL term, validation", ylabel="nats a clip")
    for axis in (losses, errors, kl):
        axis.set_xlabel("optimiser step")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.set_yscale("linear" if axis is kl else "log")
            axis.legend(fontsize=8)
    kl.set_ylim(bottom=0)  # what it falls to tells collapse
    figure.suptitle(title)
    return figure


def plot_phase_metrics(rows: list[dict[str, float]], title: str) -> Figure:
    """Draw the metrics.csv of a learned phase: the loss, and what is left along time and along frequency."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    losses, parts = figure.subplots(1, 2)
    _curve(losses, rows, "loss", "training")
    _curve(losses, rows, "val_loss", "validation, EMA weights")
    _curve(parts, rows, "val_time", "along time")
    _curve(parts, rows, "val_frequency", "along frequency")
    losses.set(title="Loss")
    parts.set(title="Validation")
    for axis in (losses, parts):
        axis.set(xlabel="optimiser step", ylabel="1 - cos(error), 1 is chance", ylim=(0, None))
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    figure.suptitle(title)
    return figure


def plot_inverses(sound: dict[str, Tensor], sample_rate: int, title: str) -> Figure:
    """Draw clips and what inverses made of them, then each inverse's error, in the same colours.

    Args:
        sound: waveforms (B, 1, L) by name, the first of them the original; a row of pictures a clip.
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


def plot_latents(z: Tensor, kl: Tensor, title: str) -> Figure:
    """Draw normalised latents beside the prior, and the nats that every channel carries.

    Args:
        z: (N, channels, rows, frames), normalised.
        kl: (channels,), nats a value.
    """
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    values, carried = figure.subplots(1, 2)
    grid = np.linspace(-5, 5, 200)
    values.hist(
        z.float().flatten().numpy(), bins=grid[::2], density=True, color="tab:purple", label="latents"
    )
    values.plot(grid, np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi), color="black", label="N(0, 1), the prior")
    values.set(title="Latent values", xlabel="normalised latent value", ylabel="density", yscale="log")
    values.set_ylim(bottom=1e-4)
    values.legend()
    carried.bar(range(len(kl)), kl.sort(descending=True).values.numpy(), color="tab:purple")
    carried.axhline(0.01, color="black", linestyle="--", label="0.01 nats: carries nothing")
    carried.set(title="KL by channel, sorted", xlabel="latent channel, by rank", ylabel="nats a value")
    carried.set_yscale("log")
    carried.xaxis.get_major_locator().set_params(integer=True)
    carried.legend(loc="lower left")
    figure.suptitle(title)
    return figure


def plot_band_errors(edges: Sequence[float], errors: Sequence[float], title: str) -> Figure:
    """Draw the reconstruction error of every band of frequencies.

    Args:
        edges: Hz, rising, one more than there are bands.
        errors: mean absolute error of each band, in normalised values.
    """
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axis = figure.subplots()
    axis.stairs(errors, np.asarray(edges) / 1000, fill=True, color="tab:purple")
    axis.set(title=title, xlabel="frequency (kHz)", ylabel="mean absolute error (x0)", ylim=(0, None))
    axis.grid(alpha=0.3)
    return figure


def plot_values(x0: Tensor, title: str) -> Figure:
    """Draw the histogram of model values: what the noise N(0, 1) is added to."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axis = figure.subplots()
    axis.hist(x0.float().flatten().numpy(), bins=120, density=True, color="tab:purple", label="data")
    grid = np.linspace(-3, 3, 200)
    axis.plot(grid, np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi), color="black", label="N(0, 1), the noise")
    axis.set(title=title, xlabel="normalised value (x0)", ylabel="density", yscale="log", ylim=(1e-3, None))
    axis.legend()
    return figure


def _curve(axis, rows: list[dict[str, float]], key: str, label: str) -> None:
    points = [(row["step"], row[key]) for row in rows if key in row]
    if points:
        axis.plot(*zip(*points, strict=True), label=label)


def _draw_tensor(axis, tensor: Tensor, name: str, config: SpectrogramConfig, limits, cmap: str):
    """Draw the first channel of a model tensor (C, F, T) with its Hz and seconds; return the image."""
    seconds = config.n_frames * config.hop_length / config.sample_rate
    image = axis.imshow(
        tensor[0].float().cpu().numpy(), origin="lower", aspect="auto", cmap=cmap, vmin=limits[0],
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
    """Return a figure with one axis a picture; the axes are a flat array."""
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
    """Put the frequency of a row beside it: rows are not evenly spaced in every representation."""
    rows = np.linspace(0, config.n_rows - 1, 6).round().astype(int)
    frequencies = config.row_frequencies
    axis.set_yticks(rows + 0.5, [f"{frequencies[row]:.0f}" for row in rows])
