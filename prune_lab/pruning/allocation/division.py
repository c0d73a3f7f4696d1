"""Divides a number of weights so that the sum of measured errors is least. Plain numbers by name."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

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
