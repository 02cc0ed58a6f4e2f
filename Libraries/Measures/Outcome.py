"""The outcome of measuring: rows with intervals and floors, as a table and as JSON."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from Libraries.Measures.Copies import smallest
from Libraries.Measures.Distances import Values
from Libraries.Measures.Uncertainty import interval

COMPARED = (  # by which sets of clips are told apart
    "kernel distance", "precision", "recall", "note length", "note steadiness", "log-mel distance",
)  # fmt: skip


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
    draws: np.ndarray | None = field(default=None, repr=False, compare=False)  # the bootstrap's

    @property
    def unseen(self) -> float:
        """The smallest difference between value and floor that these clips could have shown."""
        return math.hypot((self.high - self.low) / 2, 1.96 * self.floor_deviation)

    def content(self) -> dict:
        """Return all but the draws, what is not known as None, for JSON."""
        fields = {name: value for name, value in vars(self).items() if name != "draws"}
        return _without_nan(fields | {"unseen": self.unseen})

    @classmethod
    def read(cls, content: dict) -> "Row":
        """Return the row of which `content` is, without draws."""
        known = {name: value for name, value in content.items() if name != "unseen" and value is not None}
        figures = dict.fromkeys(("value", "low", "high", "floor", "floor_deviation"), math.nan)
        return cls(**(figures | known))

    def minus(self, other: "Row") -> tuple[float, float, float]:
        """Return how far this value is above another's, and the 95 % interval of the difference.

        Both sets must have as many pieces and one yardstick. Then both bootstraps drew the same pieces, and
        what a piece of the reference does to both values cancels.
        """
        value = self.value - other.value
        return value, *interval(value, self.draws - other.draws)


@dataclass(frozen=True, eq=False)
class Measures:
    """The outcome of `Yardstick.measure`."""

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

    def summary(self) -> dict:
        """Return the number of clips, and each row by its name, for JSON."""
        return {"clips": self.clips} | {row.name: row.content() for row in self.rows}

    def table(self) -> str:
        """Return the rows as a Markdown table, and the remarks below it."""
        head = ["measure", "value", "95 % interval", "floor", "median generated", "real", "not seen below"]
        return "\n".join([markdown(head, map(_cells, self.rows)), "", *self.remarks])

    def to_json(self) -> str:
        """Return rows, remarks and the smallest distances to training as JSON, what is not known as null."""
        smallest_of = {
            name: {"generated": smallest(ours), "reference": smallest(theirs)}
            for name, (ours, theirs) in self.nearest.items()
        }
        rows = [row.content() for row in self.rows]
        content = {"clips": self.clips, "rows": rows, "remarks": self.remarks, "nearest": smallest_of}
        return json.dumps(_without_nan(content), indent=1)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None) -> str:
    """Return a value in three figures; a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _cells(row: Row) -> list[str]:
    name = f"{row.name} ({row.unit})" if row.unit else row.name
    interval, floor = (
        f"{number(row.low)} to {number(row.high)}",
        f"{number(row.floor)} ± {number(row.floor_deviation)}",
    )
    medians = (number(row.generated), number(row.reference))
    return [name, number(row.value), interval, floor, *medians, number(row.unseen)]


def _without_nan(content):
    """Return the content with NaN as None: JSON has none."""
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
