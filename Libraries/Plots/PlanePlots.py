"""Pictures of points in the plane: where they are, where a denoiser sends and a sampler moves them."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

EXTENT = 2.6  # of the plane shown, in both directions from 0
PATHS = 10  # drawn as lines


def plot_points(panels: dict[str, Tensor], title: str, columns: int = 5) -> Figure:
    """Draw points (B, 2) in panels with these names."""
    figure, axes = _panels(list(panels), title, columns)
    for axis, points in zip(axes, panels.values(), strict=True):
        axis.scatter(*points.T, s=2, alpha=0.4, linewidths=0)
    return figure


def plot_denoising(panels: dict[str, tuple[Tensor, Tensor]], title: str, columns: int = 5) -> Figure:
    """Draw, per panel, an arrow from every x_t (B, 2) to the x0 (B, 2) that a denoiser predicts from it."""
    figure, axes = _panels(list(panels), title, columns)
    for axis, (x_t, x0) in zip(axes, panels.values(), strict=True):
        axis.quiver(*x_t.T, *(x0 - x_t).T, angles="xy", scale_units="xy", scale=1, width=0.004, color="C0")
        axis.scatter(*x0.T, s=6, color="C1", linewidths=0, zorder=3)
    return figure


def plot_paths(panels: dict[str, Tensor], title: str, columns: int = 3) -> Figure:
    """Draw, per panel, the paths of samples from noise to x0.

    Args:
        panels: states (steps + 1, B, 2) by name, x_T first and x0 last; the first few of B are lines.
    """
    figure, axes = _panels(list(panels), title, columns)
    for axis, states in zip(axes, panels.values(), strict=True):
        axis.scatter(*states[-1].T, s=2, alpha=0.3, linewidths=0, color="C1")
        axis.plot(*states[:, :PATHS].permute(2, 0, 1), color="C0", linewidth=0.7, marker=".", markersize=2)
        axis.scatter(*states[0, :PATHS].T, s=12, color="black", zorder=3)
        axis.scatter(*states[-1, :PATHS].T, s=12, color="C3", zorder=3)
    return figure


def _panels(names: list[str], title: str, columns: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with one square panel per name, all of one extent, and the panels."""
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    size = 13 / max(columns, 4)
    figure = Figure(figsize=(size * columns, size * rows + 0.5), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[len(names) :]:
        axis.remove()
    for axis, name in zip(axes, names, strict=False):
        axis.set(title=name, xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT), aspect="equal")
        axis.set(xticks=[], yticks=[])
    figure.suptitle(title)
    return figure, axes[: len(names)]
