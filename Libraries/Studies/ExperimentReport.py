"""Report an experiment: a table with intervals, a concluding sentence, and the page with both."""

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from Libraries.Plots.SpectrogramPlots import save_figure
from Libraries.Runs.Run import provenance
from Libraries.Runs.Settings import Settings
from Libraries.Sound.Metrics import mean_interval
from Libraries.Studies.ExperimentPlots import plot_experiment
from Libraries.Studies.Experiments import Experiment, Outcome, Trials, by_variant, load_reference
from Libraries.Training.Checkpoint import save_json
from Libraries.Utils import write_then_rename

LEGEND = """\
Each experiment changes one setting of the preset. Distance: log-mel Frechet distance of generated clips to
recordings of the test split, with the 95 % interval of its mean over the seeds. Highs: power in the upper
half of the band against that of recordings. Losses compare where data and target are the same. A variant is
better or worse than the first only where the 95 % interval of the difference, seed by seed, leaves out zero;
these are single comparisons, so of twenty that are chance one will look like a finding."""


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
        f"The journal: {experiment.journal} Measured with {seeds} seed{'s' * (seeds > 1)}, Frechet distance "
        f"against that of {first} [95 % interval]: {found}."
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the variants as a Markdown table."""
    header = (
        *("variant", "M param.", "steps", "s/step", "validation loss", "distance", "highs dB"),
        "against the first",
    )
    rows = [header, ("---",) * len(header)]
    for number, (name, own) in enumerate(by_variant(outcomes).items()):
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
                f"{statistics.fmean(highs):+.1f}" if highs else "-",
                verdict(outcomes, name) if number else "",
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


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
    reference, folder = load_reference(settings, trials.clips), report_folder(settings)
    figure = plot_experiment(experiment, outcomes, reference, settings.spectrogram.sample_rate)
    text = "\n\n".join(
        (
            f"# {experiment.title}",
            f"Preset {settings.preset}: {settings.train.num_steps} steps of {settings.train.batch_size}, "
            f"{len(reference.test)} clips per training, tensors {settings.spectrogram.shape}. Real training "
            f"recordings are {reference.floor:.1f} from the test recordings.",
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
        "floor": reference.floor,
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
    write_then_rename(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _with_interval(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean, half = mean_interval(values)
    return f"{mean:.1f} ± {half:.1f}" if math.isfinite(half) else f"{mean:.1f}"
