"""Pictures of the comparison on images: grids of images by class, and the losses of several networks."""

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from Libraries.Studies.Images import to_bytes

GAP = 2  # pixels between images


def plot_by_class(
    panels: dict[str, tuple[Tensor, Tensor]], classes: tuple[str, ...], title: str, columns: int = 8
) -> Figure:
    """Draw images in panels side by side, one row per class with `columns` images.

    Args:
        panels: by title, x0 (N, C, rows, columns) in [-1, 1] and labels int64 (N,). All share one colour
            range: -1 is black, 1 white.
    """
    size = 0.45 * columns * len(panels) + 1.5, 0.45 * len(classes) + 0.8  # inches
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (name, (x0, labels)) in zip(axes, panels.items(), strict=True):
        picture = tile_by_class(x0, labels, len(classes), columns)
        axis.imshow(picture, interpolation="nearest", vmin=0, vmax=255, cmap="gray")
        step = picture.shape[0] / len(classes)
        axis.set_yticks([step * (row + 0.5) for row in range(len(classes))], classes)
        axis.set(title=name, xticks=[])
    axes[0].set_ylabel("class")
    figure.suptitle(title)
    return figure


def tile_by_class(x0: Tensor, labels: Tensor, num_classes: int, columns: int) -> np.ndarray:
    """Return one uint8 picture (rows, columns) or (rows, columns, 3) with one row of images per class.

    The row of a class with too few images ends in white.
    """
    _, C, H, W = x0.shape
    picture = torch.full((C, num_classes * (H + GAP), columns * (W + GAP)), 255, dtype=torch.uint8)
    for label in range(num_classes):
        top = label * (H + GAP)
        for place, image in enumerate(to_bytes(x0[labels == label][:columns])):
            left = place * (W + GAP)
            picture[:, top : top + H, left : left + W] = image
    return (picture[0] if C == 1 else picture.permute(1, 2, 0)).numpy()


def plot_losses(curves: dict[str, list[dict[str, float]]], batch_size: int, title: str) -> Figure:
    """Draw the losses of several runs in one figure, over steps and over training time.

    Args:
        curves: the rows of each network's metrics.csv, by name.
        batch_size: images per step.
    """
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    steps, times = figure.subplots(1, 2, sharey=True)
    for number, (name, rows) in enumerate(curves.items()):
        colour = f"C{number}"
        losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
        scores = [(row["step"], row["val_loss"]) for row in rows if "val_loss" in row]
        steps.plot(*zip(*losses, strict=True), color=colour, alpha=0.35, label=f"{name}, training")
        steps.plot(*zip(*scores, strict=True), color=colour, label=f"{name}, validation")
        seconds = training_seconds(rows, batch_size)
        timed = [(seconds[step], loss) for step, loss in scores]
        times.plot(*zip(*timed, strict=True), color=colour, label=f"{name}, validation")
    steps.set(title="over steps", xlabel="optimiser step", ylabel="mean squared error", yscale="log")
    times.set(title="over time", xlabel="seconds of training (s)")
    for axis in (steps, times):
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    figure.suptitle(title)
    return figure


def training_seconds(rows: list[dict[str, float]], batch_size: int) -> dict[int, float]:
    """Return the seconds of training up to each step, from the speeds in metrics.csv (no validation)."""
    seconds, total, before = {0: 0.0}, 0.0, 0
    for row in rows:
        if "samples_per_second" in row:
            total += (row["step"] - before) * batch_size / row["samples_per_second"]
            before = row["step"]
        seconds[row["step"]] = total
    return seconds
