"""Report an experiment: a table with intervals, a concluding sentence, and the page with both."""

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from Libraries.Disk import write_whole
from Libraries.Measures import Row, floor_cell, markdown, number
from Libraries.Plots.SpectrogramPlots import save_figure
from Libraries.Runs.Run import provenance
from Libraries.Runs.Settings import Settings
from Libraries.Sound.Metrics import mean_interval
from Libraries.Studies.ExperimentPlots import plot_experiment
from Libraries.Studies.Experiments import Experiment, Outcome, Trials, by_variant, load_recordings
from Libraries.Training.Checkpoint import save_json

LEGEND = """\
Each experiment changes one setting of the preset. Kernel distance: of generated clips to recordings of the
validation split, in a music tagger's embedding, with the 95 % interval of its mean over the seeds. Note
length and steadiness: how far their distributions are from those of the recordings (median). Log-mel: Frechet
distance. Highs: power in the upper half of the band against that of recordings. Losses compare where data and
target are the same. A variant is better or worse than the first only where the 95 % interval of the
difference in kernel distance, seed by seed, leaves out zero; these are single comparisons, so of twenty that
are chance one will look like a finding. The tagger hears 3 s at 16 kHz: shorter clips are repeated until they
fill that, and clips of a lower rate leave its upper bands empty, so compare within one preset only."""
FLOOR = "training recordings: the floor"


def differences(outcomes: Sequence[Outcome], variant: str) -> list[float]:
    """Return the distance of a variant minus that of the first, per seed, without seeds that diverged.

    The difference is per seed because a seed gives all variants the same batches, noise and samples.
    """
    groups = by_variant(outcomes)
    first = {outcome.seed: outcome.distance for outcome in next(iter(groups.values()))}
    pairs = [(outcome.distance, first[outcome.seed]) for outcome in groups[variant]]
    return [own - other for own, other in pairs if own is not None and other is not None]


def verdict(outcomes: Sequence[Outcome], variant: str) -> str:
    """Return in a few words how a variant compares with the first.

    It is better or worse only if the 95 % interval of the difference excludes zero.
    """
    own = by_variant(outcomes)[variant]
    lost = sum(outcome.diverged for outcome in own)
    prefix = f"diverged with {lost} of {len(own)} seeds" if lost else ""
    found = differences(outcomes, variant)
    if not found:
        return prefix
    mean, half = mean_interval(found)
    if not math.isfinite(half):
        word = f"{mean:+.1f} with one seed, which shows nothing"
    else:
        word = "no difference shown" if abs(mean) <= half else "worse" if mean > 0 else "better"
        word += f" ({mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}])"
    return ", ".join(filter(None, (prefix, word)))


def conclusion(experiment: Experiment, outcomes: Sequence[Outcome]) -> str:
    """Return the concluding sentence: what the journal thought and what was measured."""
    first, *others = by_variant(outcomes)
    seeds = len({outcome.seed for outcome in outcomes})
    found = "; ".join(f"{name}: {verdict(outcomes, name)}" for name in others)
    return (
        f"The journal: {experiment.journal} Measured with {seeds} seed{'s' * (seeds > 1)}, kernel distance "
        f"against that of {first} [95 % interval]: {found}."
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the variants as a Markdown table, and in the last line what training recordings reach."""
    names = "note length", "note steadiness", "log-mel distance"
    header = (
        *("variant", "M param.", "steps", "s/step", "validation loss", "kernel distance"),
        *("note length, s", "steadiness, cents", "log-mel", "highs dB", "against the first"),
    )
    rows = []
    for position, (name, own) in enumerate(by_variant(outcomes).items()):
        distances = [outcome.distance for outcome in own if outcome.distance is not None]
        highs = [outcome.highs for outcome in own if outcome.highs is not None]
        losses = [statistics.fmean(outcome.losses.values()) for outcome in own if outcome.losses]
        rows.append(
            (
                name,
                f"{own[0].parameters / 1e6:.3g}",
                str(own[0].num_steps),
                f"{own[0].seconds_per_step:.3f}",
                f"{statistics.fmean(losses):.3f}" if losses else "-",
                _with_interval(distances),
                *(_means(own, of) for of in names),
                f"{statistics.fmean(highs):+.1f}" if highs else "-",
                verdict(outcomes, name) if position else "",
            )
        )
    if measures := next((outcome.measures for outcome in outcomes if outcome.measures), None):
        floors = [floor_cell(Row.read(measures[of])) for of in ("kernel distance", *names)]
        rows.append((FLOOR, *[""] * 4, *floors, "", ""))
    return markdown(header, rows)


def report_folder(settings: Settings) -> Path:
    """Return the folder of the pages of a preset's experiments."""
    return settings.results_dir / "Experiments" / settings.preset


def write_report(
    experiment: Experiment, outcomes: Sequence[Outcome], settings: Settings, trials: Trials
) -> tuple[str, Figure]:
    """Write `<name>.md`, `<name>.png` and `<name>.json` of an experiment to `report_folder`.

    Returns:
        The text of the page, and the picture.
    """
    recordings, folder = load_recordings(settings, "validation", trials.clips), report_folder(settings)
    figure = plot_experiment(experiment, outcomes, recordings, settings.spectrogram.sample_rate)
    text = "\n\n".join(
        (
            f"# {experiment.title}",
            f"Preset {settings.preset}: {settings.train.num_steps} steps of {settings.train.batch_size}, "
            f"{trials.clips} clips per training, tensors {settings.spectrogram.shape}; against "
            f"{len(recordings)} recordings of the validation split.",
            table(outcomes),
            conclusion(experiment, outcomes),
            f"![{experiment.title}]({experiment.name}.png)",
        )
    )
    save_figure(figure, folder / f"{experiment.name}.png")
    content = {
        "title": experiment.title,
        "conclusion": conclusion(experiment, outcomes),
        "provenance": provenance(),
        "outcomes": [
            {k: v for k, v in vars(outcome).items() if k not in ("clips", "curve")} for outcome in outcomes
        ],
    }
    save_json(folder / f"{experiment.name}.json", content)
    _write_text(folder / f"{experiment.name}.md", text + "\n")
    return text, figure


def write_index(experiments: Iterable[Experiment], settings: Settings) -> str:
    """Write README.md in `report_folder`: the table and conclusion of every experiment that has a page.

    Returns:
        The text of the README.
    """
    folder, parts = report_folder(settings), [f"# Experiments with {settings.preset}", LEGEND]
    for experiment in experiments:
        page = folder / f"{experiment.name}.md"
        if page.exists():
            title, _, rows, sentence, _ = page.read_text(encoding="utf-8").strip().split("\n\n")
            parts += [f"## [{title.removeprefix('# ')}]({page.name})", rows, sentence]
    text = "\n\n".join(parts) + "\n"
    _write_text(folder / "README.md", text)
    return text


def _write_text(path: Path, text: str) -> None:
    write_whole(path, text.encode())


def _means(outcomes: Sequence[Outcome], name: str) -> str:
    """Return the means over the seeds of a measure and of its median."""
    rows = [outcome.measures[name] for outcome in outcomes if outcome.measures]
    found = [[row[part] for row in rows if row[part] is not None] for part in ("value", "generated")]
    value, median = (number(statistics.fmean(values)) if values else "" for values in found)
    return (value or "-") + (f" ({median})" if median else "")


def _with_interval(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean, half = mean_interval(values)
    return f"{mean:.1f} ± {half:.1f}" if math.isfinite(half) else f"{mean:.1f}"
