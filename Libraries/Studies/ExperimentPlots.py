"""Draw any experiment in the same way: distances, losses, and clips of the same seeds."""

import math
import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from Libraries.Plots.SpectrogramPlots import draw_waveform
from Libraries.Sound.Metrics import mean_interval
from Libraries.Sound.Stereo import downmix
from Libraries.Studies.Experiments import Experiment, Outcome, by_variant, load_sound
from Libraries.Utils import spread_indices

CLIPS = 4  # per row


def plot_experiment(
    experiment: Experiment, outcomes: Sequence[Outcome], recordings: Tensor, sample_rate: int
) -> Figure:
    """Draw distances with 95 % intervals, losses by range of t and over time, and clips of the same seeds.

    Args:
        recordings: waveforms (N, C, L), of which some are drawn below.
    """
    groups, height = by_variant(outcomes), 1.7
    figure = Figure(figsize=(11, 3.8 + height * (len(groups) + 1)), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(3.8, height * (len(groups) + 1)))
    figure.suptitle(experiment.title)
    distances, ranges, curves = above.subplots(1, 3)
    _draw_distances(distances, groups)
    _draw_losses(ranges, groups)
    _draw_curves(curves, groups)
    for axis in (distances, ranges, curves):
        axis.grid(alpha=0.3)
    rows = {f"{name}\ntraining {own[0].seed}": load_sound(own[0]) for name, own in groups.items()}
    rows["recordings"] = downmix(recordings[spread_indices(len(recordings), CLIPS)])[:, 0]
    _draw_clips(below, rows, sample_rate)
    return figure


def _draw_distances(axis, groups: dict[str, list[Outcome]]) -> None:
    for row, own in enumerate(groups.values()):
        values = [outcome.distance for outcome in own if outcome.distance is not None]
        if not values:
            axis.text(0.5, row, "diverged", transform=axis.get_yaxis_transform(), ha="center", va="center")
            continue
        mean, half = mean_interval(values)
        axis.plot(values, [row] * len(values), "o", color=f"C{row}", alpha=0.5, markeredgewidth=0)
        reach = half if math.isfinite(half) else 0
        axis.plot([mean - reach, mean + reach], [row, row], color=f"C{row}")
        axis.plot(mean, row, "|", color=f"C{row}", markersize=14)
    _draw_floor(axis, groups)
    axis.set(title="Distance to the recordings", xlabel="kernel distance, 95 % interval")
    axis.set_yticks(range(len(groups)), list(groups))
    for number, label in enumerate(axis.get_yticklabels()):
        label.set_color(f"C{number}")  # the key to the colours of all three axes
    axis.set_ylim(len(groups) - 0.5, -0.5)


def _draw_floor(axis, groups: dict[str, list[Outcome]]) -> None:
    """Draw what training recordings reach: mean and deviation; nothing if all trainings diverged."""
    known = [outcome.measures for own in groups.values() for outcome in own if outcome.measures]
    if known:
        row = known[0]["kernel distance"]
        mean, deviation = row["floor"], row["floor_deviation"]
        axis.axvspan(mean - deviation, mean + deviation, color="black", alpha=0.15)
        axis.axvline(mean, color="black", linestyle="--", label="training recordings")
        axis.legend(fontsize="small")


def _draw_losses(axis, groups: dict[str, list[Outcome]]) -> None:
    """Draw the validation losses; a training that diverged early has none."""
    for number, own in enumerate(groups.values()):
        known = [outcome.losses for outcome in own if outcome.losses]
        for losses in known:
            axis.plot(list(losses), list(losses.values()), color=f"C{number}", alpha=0.3)
        if known:
            means = [statistics.fmean(losses[key] for losses in known) for key in known[0]]
            axis.plot(list(known[0]), means, "o-", color=f"C{number}")
    axis.set(title="Validation loss", xlabel="timesteps (0: least noise)", ylabel="mean squared error")
    axis.set_yscale("log")


def _draw_curves(axis, groups: dict[str, list[Outcome]]) -> None:
    for number, own in enumerate(groups.values()):
        for outcome in own:
            if outcome.curve:
                axis.plot(*zip(*outcome.curve, strict=True), color=f"C{number}", alpha=0.5, linewidth=0.8)
    axis.set(title="Training loss", xlabel="clips seen", ylabel="mean squared error", yscale="log")


def _draw_clips(figure, rows: dict[str, Tensor | None], sample_rate: int) -> None:
    """Draw a row of clips for each name, in dB below the loudest value of each clip."""
    axes = figure.subplots(len(rows), CLIPS, squeeze=False)
    for line, (name, clips) in zip(axes, rows.items(), strict=True):
        for column, axis in enumerate(line):
            if clips is None or column >= len(clips):
                axis.text(0.5, 0.5, "diverged" if clips is None else "", ha="center", va="center")
                axis.set_axis_off()
            else:
                image = draw_waveform(axis, clips[column], sample_rate)
                axis.set_title(f"{name}, noise {column}" if name != "recordings" else name, fontsize="small")
    figure.colorbar(image, ax=axes, label="dB below the loudest", shrink=0.6)
