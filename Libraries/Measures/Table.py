"""Several sets of clips in one table: the figures that tell them apart, and what real music reaches."""

from collections.abc import Mapping, Sequence

from Libraries.Measures.Measure import PUBLISHED_CLIPS
from Libraries.Measures.Outcome import COMPARED, Measures, Row, markdown, number

FLOOR = "real training music: the floor"
HOW_TO_READ = "[95 % interval over pieces], (median; beside the floor that of the real clips)."


def sets_table(
    heading: str,
    sets: Mapping[str, Measures],
    names: Sequence[str] = COMPARED,
    extra: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Return a Markdown table with a line for each set, the floor's below, and what could not be seen.

    Args:
        heading: of the first column.
        sets: of as many clips, measured by one yardstick.
        names: of the measures shown.
        extra: more columns, by heading: a cell for each set.
    """
    extra = extra or {}
    first = next(iter(sets.values()))
    head = [heading, *(heading_of(name, first) for name in names), *extra]
    lines = [
        [name, *(cell(row_of(found, of)) for of in names), *(cells[i] for cells in extra.values())]
        for i, (name, found) in enumerate(sets.items())
    ]
    lines.append([FLOOR, *(floor_cell(row_of(first, of)) for of in names), *("" for _ in extra)])
    return "\n".join([markdown(head, lines), "", HOW_TO_READ + _not_seen(sets)])


def row_of(measures: Measures, name: str) -> Row | None:
    """Return a row; None where there are too few clips for it."""
    return next((row for row in measures.rows if row.name == name), None)


def heading_of(name: str, measures: Measures) -> str:
    """Return a measure's name with its unit."""
    row = row_of(measures, name)
    return f"{name} ({row.unit})" if row and row.unit else name


def cell(row: Row | None) -> str:
    """Return a value: the kernel distance with its interval, a distribution's distance with its median."""
    if row is None:
        return "–"
    if row.name == COMPARED[0]:
        return f"{number(row.value)} [{number(row.low)}, {number(row.high)}]"
    return number(row.value) + ("" if row.generated is None else f" ({number(row.generated)})")


def floor_cell(row: Row | None) -> str:
    """Return the floor with its deviation, and the median of the real clips."""
    if row is None:
        return "–"
    median = "" if row.reference is None else f" ({number(row.reference)})"
    return f"{number(row.floor)} ± {number(row.floor_deviation)}{median}"


def _not_seen(sets: Mapping[str, Measures]) -> str:
    """Return what these clips could not have shown; nothing where there are enough of them."""
    fewest = min(measures.clips for measures in sets.values())
    if fewest >= PUBLISHED_CLIPS:
        return ""
    unseen = max(measures[COMPARED[0]].unseen for measures in sets.values())
    return (
        f" {fewest} clips: a kernel distance within {number(unseen)} of the floor could not have been told "
        f"from it; publish {PUBLISHED_CLIPS} or more."
    )
