"""Seconds by how much is left of a layer, and what fits into a budget of them. Plain numbers by name."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prune_lab.errors import BadInput, BadSetting


@dataclass(frozen=True)
class Curve:
    """Seconds that a layer takes with so many units, linear between what was measured.

    Attributes:
        counts: of units, ascending, from 0 to all.
        seconds: of each count, medians.
        spread: longest minus shortest, of each count.
    """

    counts: tuple[int, ...]
    seconds: tuple[float, ...]
    spread: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in zip(self.counts, self.counts[1:], strict=False))
        if len(self.counts) < 2 or self.counts[0] != 0 or not rising or len(self.seconds) != len(self.counts):
            raise BadInput(f"counts {list(self.counts)} are not allowed; they ascend from 0, each with its seconds")

    @property
    def count(self) -> int:
        """All units."""
        return self.counts[-1]

    def at(self, kept: int) -> float:
        """Seconds with some of the units.

        Raises:
            ValueError: there are not so many.
        """
        if not 0 <= kept <= self.count:
            raise ValueError(f"{kept} units, where the curve goes from 0 to {self.count}")
        right = bisect_left(self.counts, kept)
        if self.counts[right] == kept:
            return self.seconds[right]
        low, high = self.counts[right - 1], self.counts[right]
        share = (kept - low) / (high - low)
        return (1 - share) * self.seconds[right - 1] + share * self.seconds[right]

    def least(self, min_units: int) -> float:
        """The fewest seconds with at least some units; not always those with the fewest of them."""
        first = min(min_units, self.count)
        corners = [seconds for count, seconds in zip(self.counts, self.seconds, strict=True) if count >= first]
        return min(self.at(first), *corners)


@dataclass(frozen=True)
class TimeBudget:
    """How many seconds a pass of the pruned model may take, and what decides them.

    Attributes:
        fixed: seconds of all that stays as it is.
        curves: by the name of units, those of their layer.
        seconds: that are allowed.
        digest: of the table that they are from.
    """

    fixed: float
    curves: Mapping[str, Curve]
    seconds: float
    digest: str = ""

    @property
    def dense(self) -> float:
        """Seconds while nothing is gone."""
        return self.of({})

    def of(self, dropped: Mapping[str, int]) -> float:
        """Predicted seconds when so many units are gone of layers, by the names of units; of others none."""
        return self.fixed + sum(
            curve.at(curve.count - dropped.get(name, 0)) for name, curve in sorted(self.curves.items())
        )

    def fits(self, seconds: float) -> bool:
        """Whether so many seconds are allowed, a billionth aside, which sums of the same numbers may differ by."""
        return seconds <= self.seconds * (1 + 1e-9)

    def out_of_reach(self, owner: object, least: float, how: str) -> BadSetting:
        """The error for a speed that cannot be reached.

        Args:
            owner: has the field ``speedup``.
            least: the fewest seconds that can be.
            how: they come about.
        """
        return BadSetting(
            owner,
            "speedup",
            f"is out of reach: the largest is {self.dense / least:.4g} ({how}), {self.dense:.4g} s down to "
            f"{least:.4g} s, of which {self.fixed:.4g} s are of what stays as it is; ask for less, or remove neurons "
            "and heads with sparsity=width",
        )


def grid(count: int, steps: int) -> list[int]:
    """At most ``steps`` numbers of units beside 0, evenly spaced up to all of them."""
    return sorted({round(count * step / steps) for step in range(steps + 1)})


def options(count: int, least: int, most: int = 256) -> Sequence[int]:
    """How many of some units may go where at least some stay: all numbers, or about ``most`` evenly spaced ones."""
    last = max(0, count - least)
    step = max(1, -(-last // most))
    return sorted({*range(0, last + 1, step), last})
