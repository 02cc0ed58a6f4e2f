"""Several sets of clips in one table: the figures that tell them apart, and what real music reaches."""

from collections.abc import Iterable, Mapping, Sequence

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
    fewest = min(measures.clips for measures in sets.values())
    unseen = not_seen(fewest, (measures[COMPARED[0]] for measures in sets.values()))
    return "\n".join([markdown(head, lines), "", HOW_TO_READ + unseen])


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


def not_seen(clips: int, rows: Iterable[Row]) -> str:
    """Return what so few clips could not have shown of these kernel distances; "" where there are enough."""
    if clips >= PUBLISHED_CLIPS:
        return ""
    unseen = max(row.unseen for row in rows)
    return (
        f" {clips} clips: a kernel distance within {number(unseen)} of the floor could not have been told "
        f"from it; publish {PUBLISHED_CLIPS} or more."
    )
