"""Curves and histograms, as matplotlib `Figure`s: schedules, trainings, samplers, values."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from Libraries.Diffusion import NoiseSchedule


def plot_schedules(schedules: dict[str, NoiseSchedule], title: str = "Noise schedules") -> Figure:
    """Draw the signal fraction and the log-SNR of named schedules over t."""
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
    curves: dict[str, list[tuple[int, float, float, float, float]]], floor: tuple[float, float], title: str
) -> Figure:
    """Draw the quality of samples over the number of steps and over sampling time.

    Args:
        curves: by sampler, (steps, seconds per clip, kernel distance, its interval's ends) at each point.
        floor: mean and deviation of the distance that real training music has.
    """
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for name, points in curves.items():
        steps, seconds, distances, low, high = map(np.array, zip(*points, strict=True))
        reach = np.stack([distances - low, high - distances])
        for axis, place in ((left, steps), (right, seconds)):
            axis.errorbar(place, distances, reach, marker="o", capsize=2, elinewidth=0.6, label=name)
    left.set(title="over steps", xlabel="steps", ylabel="kernel distance, 95 % interval")
    right.set(title="over time", xlabel="seconds per clip")
    mean, deviation = floor
    for axis in (left, right):
        axis.axhspan(mean - deviation, mean + deviation, color="black", alpha=0.15)
        axis.axhline(mean, color="black", linestyle="--", label="real training music (the floor)")
        axis.set(xscale="log")
        axis.set_yscale("symlog", linthresh=max(mean + deviation, 1.0))  # the distance may be below 0
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
    for axis in _over_steps(figure, title):
        positive = all((line.get_ydata() > 0).all() for line in axis.lines)
        if axis is not rates and positive:  # a loss with learned weights can be negative
            axis.set_yscale("log")
    return figure


def plot_vae_metrics(rows: list[dict[str, float]], title: str) -> Figure:
    """Draw the metrics.csv of an autoencoder: the loss, the reconstruction terms and the KL."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    losses, errors, kl = figure.subplots(1, 3)
    _curve(losses, rows, "loss", "training")
    _curve(losses, rows, "val_loss", "validation, EMA weights")
    _curve(errors, rows, "val_reconstruction", "reconstruction")
    _curve(errors, rows, "val_spectral", "neighbour differences")
    _curve(kl, rows, "val_kl", "KL(posterior, prior)")
    losses.set(title="Loss, weighted", ylabel="loss per value")
    errors.set(title="Reconstruction term, validation", ylabel="error per value")
    kl.set(title="KL term, validation", ylabel="nats per clip")
    for axis in _over_steps(figure, title):
        if axis is not kl:
            axis.set_yscale("log")
    kl.set_ylim(bottom=0)  # shows how close to collapse the KL falls
    return figure


def plot_phase_metrics(rows: list[dict[str, float]], title: str) -> Figure:
    """Draw the metrics.csv of a learned phase: the loss, and the errors along time and frequency."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    losses, parts = figure.subplots(1, 2)
    _curve(losses, rows, "loss", "training")
    _curve(losses, rows, "val_loss", "validation, EMA weights")
    _curve(parts, rows, "val_time", "along time")
    _curve(parts, rows, "val_frequency", "along frequency")
    losses.set(title="Loss")
    parts.set(title="Validation")
    for axis in (losses, parts):
        axis.set(ylabel="1 - cos(error), 1 is chance", ylim=(0, None))
    _over_steps(figure, title)
    return figure


def plot_latents(z: Tensor, kl: Tensor, title: str) -> Figure:
    """Draw normalised latents beside the prior, and the KL of every channel.

    Args:
        z: (N, channels, rows, frames), normalised.
        kl: (channels,), nats per value.
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
    carried.set(title="KL by channel, sorted", xlabel="latent channel, by rank", ylabel="nats per value")
    carried.set_yscale("log")
    carried.xaxis.get_major_locator().set_params(integer=True)
    carried.legend(loc="lower left")
    figure.suptitle(title)
    return figure


def plot_band_errors(edges: Sequence[float], errors: Sequence[float], title: str) -> Figure:
    """Draw the reconstruction error of every frequency band.

    Args:
        edges: Hz, ascending, one more than the bands.
        errors: mean absolute error of each band, in normalised values.
    """
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axis = figure.subplots()
    axis.stairs(errors, np.asarray(edges) / 1000, fill=True, color="tab:purple")
    axis.set(title=title, xlabel="frequency (kHz)", ylabel="mean absolute error (x0)", ylim=(0, None))
    axis.grid(alpha=0.3)
    return figure


def plot_values(x0: Tensor, title: str) -> Figure:
    """Draw the histogram of x0 beside the noise N(0, 1) that is added to it."""
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


def _over_steps(figure: Figure, title: str) -> list:
    """Finish a figure of curves over optimiser steps; return the axes that have a curve."""
    figure.suptitle(title)
    for axis in figure.axes:
        axis.set_xlabel("optimiser step")
        axis.grid(alpha=0.3)
    drawn = [axis for axis in figure.axes if axis.lines]
    for axis in drawn:
        axis.legend(fontsize=8)
    return drawn
