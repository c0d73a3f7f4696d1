"""Divides a number of weights, or a budget of seconds, so that the sum of measured errors is least. Plain numbers."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

Point = tuple[int, float]
"""How many weights go, and the error that it makes."""


def divide(curves: Mapping[str, Sequence[Point]], total: int) -> dict[str, int]:
    """Minimises the sum of errors, each read from the lower convex hull of a measured curve.

    Segments of all hulls are taken by slope, the flattest first, until ``total`` is reached. That is the exact optimum
    for the hulls, which are linear between their points; at most one part ends between two points.

    Args:
        curves: at least one point each, of which one is ``(0, error)``; in any order.
        total: at most the sum of the largest counts.

    Returns:
        How many weights go of each part; the sum is ``total``.

    Raises:
        ValueError: ``total`` is out of reach.
    """
    segments = []
    for name, points in curves.items():
        hull = lower_hull(points)
        for (start, low), (stop, high) in pairwise(hull):
            segments.append(((high - low) / (stop - start), name, stop - start))
    counts, left = dict.fromkeys(curves, 0), total
    for _, name, width in sorted(segments, key=lambda segment: segment[0]):
        taken = min(width, left)
        counts[name] += taken
        left -= taken
    if left:
        raise ValueError(f"the curves reach to {total - left} weights, not to {total}")
    return counts


def lower_hull(points: Sequence[Point]) -> list[Point]:
    """The corners of the lower convex hull, by count; of points with the same count the lowest."""
    hull: list[Point] = []
    for point in sorted(points):
        if hull and hull[-1][0] == point[0]:
            continue
        while len(hull) > 1 and _is_above(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _is_above(first: Point, middle: Point, last: Point) -> bool:
    """Whether the middle point lies on or above the line between the others."""
    slope = (last[1] - first[1]) / (last[0] - first[0])
    return middle[1] >= first[1] + slope * (middle[0] - first[0])


BUCKETS = 20_000
"""Into how many equal parts `divide_budget` divides what can be spent; a part that is begun is spent."""


def divide_budget(
    options: Mapping[str, Sequence[tuple[float, float]]], budget: float, buckets: int = BUCKETS
) -> dict[str, int]:
    """Chooses an option of each part so that the sum of errors is least and that of costs within a budget.

    Dynamic programming over parts, as in SPDY (arXiv:2201.13096), for curves of any shape. What an option costs more
    than the cheapest one of its part is rounded up to whole buckets, so that the budget holds; with costs that are
    whole buckets already the optimum is exact.

    Args:
        options: of each part: cost, of at least 0, and error.
        budget: for all costs together.
        buckets: into which the budget is divided, less the sum of the lowest costs.

    Returns:
        The index of the chosen option, by the name of the part; among equal ones the first.

    Raises:
        ValueError: the cheapest options cost more than the budget.
    """
    cheapest = {name: min(cost for cost, _ in each) for name, each in options.items()}
    spare = budget - sum(cheapest.values())
    if spare < -1e-9 * abs(budget):
        raise ValueError(f"the cheapest options cost {sum(cheapest.values()):.6g}, more than {budget:.6g}")
    unit = max(spare, 0.0) / buckets
    best = np.zeros(buckets + 1)  # the least error with at most so many buckets
    chosen: dict[str, np.ndarray[Any, np.dtype[np.int32]]] = {}
    costs: dict[str, list[int]] = {}
    for name, each in options.items():
        costs[name] = [_buckets(cost - cheapest[name], unit, buckets) for cost, _ in each]
        found, index = np.full(buckets + 1, np.inf), np.zeros(buckets + 1, np.int32)
        for number, (spent, (_, error)) in enumerate(zip(costs[name], each, strict=True)):
            if spent > buckets:
                continue
            tried = best[: buckets + 1 - spent] + error
            better = tried < found[spent:]
            found[spent:][better] = tried[better]
            index[spent:][better] = number
        best, chosen[name] = found, index
    left, result = buckets, {}
    for name in reversed(list(options)):
        result[name] = int(chosen[name][left])
        left -= costs[name][result[name]]
    return {name: result[name] for name in options}


def _buckets(cost: float, unit: float, buckets: int) -> int:
    """Rounded up, but for what rounding of sums makes of whole ones; more than there are where nothing is to spare."""
    if cost <= 0:
        return 0
    return buckets + 1 if unit == 0 else min(buckets + 1, math.ceil(cost / unit - 1e-6))
