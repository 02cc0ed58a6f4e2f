"""The outcome of measuring: rows with intervals and floors, as a table and as JSON."""

import json
import math
from dataclasses import asdict, dataclass, field

import numpy as np

from Libraries.Measures.Copies import smallest
from Libraries.Measures.Distances import Values


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    unit: str
    value: float  # generated against reference
    low: float  # 95 % interval of the value, over pieces
    high: float
    floor: float  # training against reference: mean of random sets of the same size
    floor_deviation: float
    generated: float | None = None  # medians, where there is something to take a median of
    reference: float | None = None

    @property
    def unseen(self) -> float:
        """The smallest difference between value and floor that these clips could have shown."""
        return math.hypot((self.high - self.low) / 2, 1.96 * self.floor_deviation)


@dataclass(frozen=True, eq=False)
class Measures:
    """The outcome of `measure`."""

    clips: int
    rows: list[Row]
    remarks: list[str]  # sentences: what could not have been seen, copies
    generated: dict[str, Values] = field(repr=False)  # the distributions, for the picture
    reference: dict[str, Values] = field(repr=False)
    nearest: dict[str, tuple[np.ndarray, np.ndarray]] = field(repr=False)  # to training: generated, reference

    def __getitem__(self, name: str) -> Row:
        """Return a row by its name; a KeyError lists the names."""
        rows = {row.name: row for row in self.rows}
        if name not in rows:
            raise KeyError(f"no measure {name!r}; there are {', '.join(rows)}")
        return rows[name]

    def table(self) -> str:
        """Return the rows as a Markdown table, and the remarks below it."""
        head = ["measure", "value", "95 % interval", "floor", "median generated", "real", "not seen below"]
        lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in self.rows]
        return "\n".join([*lines, "", *self.remarks])

    def to_json(self) -> str:
        """Return rows, remarks and the smallest distances to training as JSON, what is not known as null."""
        smallest_of = {
            name: {"generated": smallest(ours), "reference": smallest(theirs)}
            for name, (ours, theirs) in self.nearest.items()
        }
        rows = [asdict(row) | {"unseen": row.unseen} for row in self.rows]
        content = {"clips": self.clips, "rows": rows, "remarks": self.remarks, "nearest": smallest_of}
        return json.dumps(_without_nan(content), indent=1)


def _cells(row: Row) -> list[str]:
    name = f"{row.name} ({row.unit})" if row.unit else row.name
    interval, floor = (
        f"{_number(row.low)} to {_number(row.high)}",
        f"{_number(row.floor)} ± {_number(row.floor_deviation)}",
    )
    medians = (_number(row.generated), _number(row.reference))
    return [name, _number(row.value), interval, floor, *medians, _number(row.unseen)]


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _without_nan(content):
    """Return the content with NaN as None: JSON has none."""
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
