"""Real-valued levels become a budget that is exact to the weight: plain numbers by name, nothing here knows models."""

import math
from collections.abc import Mapping

from prune_lab.pruning.masks import count_dropped

_BISECTIONS = 100  # the interval is at most 2 wide and ends at the resolution of a float well before


def exact_counts(
    levels: Mapping[str, float],
    entries: Mapping[str, int],
    caps: Mapping[str, int],
    total: int,
    floors: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Shifts all levels by one number, clipped to what each part may lose, so that ``total`` weights go.

    The shift is found by bisection; what it leaves of fractions is given out by largest remainder, the first of equal
    ones first.

    Args:
        levels: the desired fraction removed of each part; any finite number.
        entries: the weights in each part.
        caps: how many weights of each part may go at most, less than ``entries``.
        total: how many go of all parts together.
        floors: how many weights of each part go at least, up to its cap: those that are gone already; 0 by default.

    Returns:
        The weights that go of each part, from its floor to its cap; their sum is ``total``, or that of the floors where
        it is more.

    Raises:
        ValueError: the caps do not allow that many.
    """
    if not 0 <= total <= sum(caps[name] for name in levels):
        raise ValueError(f"{total} weights cannot go where at most {sum(caps[name] for name in levels)} may")
    least = {name: min((floors or {}).get(name, 0), caps[name]) for name in levels}
    total = max(total, sum(least.values()))
    wanted = _shifted(levels, entries, least, caps, total)
    counts = {name: math.floor(number) for name, number in wanted.items()}
    by_remainder = sorted(wanted, key=lambda name: counts[name] - wanted[name])
    left = total - sum(counts.values())
    while left > 0:  # more than once only where caps are in the way
        for name in by_remainder:
            if left > 0 and counts[name] < caps[name]:
                counts[name] += 1
                left -= 1
    return counts


def levels_of(counts: Mapping[str, int], entries: Mapping[str, int]) -> dict[str, float]:
    """The sparsity of each part as a float of which `count_dropped` makes exactly its count."""
    return {name: level_of(count, entries[name]) for name, count in counts.items()}


def level_of(count: int, entries: int) -> float:
    """The least float at or next to ``count / entries`` of which `count_dropped` makes ``count``."""
    level = count / entries
    while count_dropped(level, entries) < count:
        level = math.nextafter(level, 1.0)
    return level


def _shifted(
    levels: Mapping[str, float],
    entries: Mapping[str, int],
    least: Mapping[str, int],
    caps: Mapping[str, int],
    total: int,
) -> dict[str, float]:
    """The real-valued numbers of weights after the shift; their sum is ``total``, or less by rounding only."""

    def at(shift: float) -> dict[str, float]:
        return {name: min(max((levels[name] + shift) * entries[name], least[name]), caps[name]) for name in levels}

    low = -max(levels.values(), default=0.0)  # everything stays
    high = max((caps[name] / entries[name] - levels[name] for name in levels), default=0.0)  # all caps are reached
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if math.fsum(at(middle).values()) <= total:
            low = middle
        else:
            high = middle
    return at(low)
