"""The picture of a set of measures: all of them against their floors, and the distributions behind them."""

import math

import numpy as np
from matplotlib.figure import Figure

from Libraries.Measures.Description import STEREO_UNITS, UNITS
from Libraries.Measures.Outcome import Measures, Row

DRAWN = (
    "note length", "note steadiness", "distance to the grid", "onsets", "polyphony", "notes in the best key",
    "pulse clarity", "spread of intervals", "spectral tilt", "level above 5 kHz",
)  # fmt: skip
HIGHER_IS_BETTER = ("precision", "recall")
BINS = 30
COLUMNS = 4
LARGEST = 30.0  # times what can be seen, where the axis of the overview ends


def plot_measures(measures: Measures, title: str) -> Figure:
    """Draw every measure's distance from its floor beside the distributions of generated and real clips."""
    figure = Figure(figsize=(16, 9), layout="constrained")
    figure.suptitle(f"{title}: {measures.clips} clips")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 3))
    _draw_overview(left.subplots(), measures)
    names = [name for name in DRAWN if name in measures.generated]
    panels = len(names) + len(measures.nearest)
    axes = right.subplots(-(-panels // COLUMNS), COLUMNS).ravel()
    for name, axis in zip(names, axes, strict=False):
        sets = measures.generated[name].values, measures.reference[name].values
        _draw_histograms(axis, *sets)
        axis.set(title=name, xlabel=(UNITS | STEREO_UNITS)[name])
    for (name, sets), axis in zip(measures.nearest.items(), axes[len(names) :], strict=False):
        _draw_histograms(axis, *sets)
        axis.set(title="nearest training clip", xlabel=f"distance in the {name}")
    for axis in axes[panels:]:
        axis.set_axis_off()
    axes[0].legend()
    return figure


def _draw_overview(axis, measures: Measures) -> None:
    """Draw how much worse each value is than its floor, in units of what could have been seen."""
    rows = measures.rows[::-1]
    distances = [_worse(row) for row in rows]
    colours = ["C3" if distance > 1 else "C7" for distance in distances]
    axis.barh(range(len(rows)), distances, color=colours)
    axis.axvspan(-1, 1, color="C7", alpha=0.2)
    axis.set_xscale("symlog", linthresh=1)
    axis.set_yticks(range(len(rows)), [row.name for row in rows])
    axis.set_xticks(ticks := [-10, -1, 0, 1, 10], [str(tick) for tick in ticks])
    axis.set(title="worse than real music", xlabel="distance from the floor /\nwhat could have been seen")


def _worse(row: Row) -> float:
    difference = row.floor - row.value if row.name in HIGHER_IS_BETTER else row.value - row.floor
    if not math.isfinite(difference):
        return 0.0
    return float(np.clip(difference / max(row.unseen, 1e-9), -LARGEST, LARGEST))


def _draw_histograms(axis, generated: np.ndarray, reference: np.ndarray) -> None:
    """Draw both as densities over the middle 98 % of all values."""
    together = np.concatenate([generated, reference])
    if len(together) == 0:
        axis.text(0.5, 0.5, "none", transform=axis.transAxes, ha="center")
        return
    low, high = np.quantile(together, [0.01, 0.99])
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    for values, name, colour in ((reference, "real", "C0"), (generated, "generated", "C1")):
        if len(values):
            weights = np.full(len(values), 1 / len(values))
            axis.hist(
                values.clip(edges[0], edges[-1]), edges, weights=weights, alpha=0.5, label=name, color=colour
            )
