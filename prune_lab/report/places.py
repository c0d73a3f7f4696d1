"""Where the columns of a table stand on the axis of a plot: levels at their numbers, all else apart from them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prune_lab.report.spec import Choices, last_of

_N_OF_M = re.compile(r"'?\d+:\d+'?")


@dataclass(frozen=True)
class Places:
    """Columns on an axis.

    Attributes:
        levels: columns of one pattern with a level of sparsity, by which they stand and which a line may join.
        others: columns that are no level, such as 2:4; to the right of the levels, each by itself.
        step: the distance between two that are no levels, or the room of a level that is alone.
    """

    levels: Mapping[str, float]
    others: Mapping[str, float]
    step: float

    @property
    def all(self) -> dict[str, float]:
        """Every column."""
        return {**self.levels, **self.others}

    @property
    def divider(self) -> float | None:
        """Between the levels and the rest, where there are both."""
        return max(self.levels.values()) + self.step * 0.6 if self.levels and self.others else None

    @property
    def limits(self) -> tuple[float, float]:
        """Of the axis."""
        found = self.all.values()
        return min(found) - self.step * 0.5, max(found) + self.step * 0.5

    def dodged(self, column: str, series: int, count: int) -> float:
        """Where a series' point stands: beside those of the others, where no number is read off the axis."""
        exact = column in self.levels and len(self.levels) > 1
        return self.all[column] + (0.0 if exact else (series - (count - 1) / 2) * 0.7 * self.step / count)


def places_of(columns: Choices) -> Places:
    """Returns the places of a table's columns."""
    found = {name: level for name, added in columns.items() if (level := _level(added)) is not None}
    if len(set(found.values())) < len(found):  # columns differ in something else, too
        found = {}
    values = sorted(found.values())
    step = (values[-1] - values[0]) / (len(values) - 1) if len(values) > 1 else 0.2 if values else 1.0
    start = values[-1] + 1.2 * step if values else 0.0
    rest = [name for name in columns if name not in found]
    return Places(found, {name: start + place * step for place, name in enumerate(rest)}, step)


def _level(added: Sequence[str]) -> float | None:
    """The level of sparsity that a column asks for; None for N:M, whose level follows from the pattern."""
    pattern = last_of(added, "sparsity.pattern") or ""
    if (last_of(added, "sparsity") or "").startswith("nm_") or _N_OF_M.fullmatch(pattern):
        return None
    try:
        return float(last_of(added, "sparsity.level") or "")
    except ValueError:
        return None
