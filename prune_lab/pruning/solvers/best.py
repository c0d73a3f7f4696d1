"""The choice among what a refinement passes through, by an error that it is not fitted to."""

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def best_of(
    start: T, candidates: Iterable[T], error: Callable[[T], float], known: float | None = None
) -> tuple[T, int]:
    """The one with the least error.

    Args:
        start: what the candidates were made from; it stays unless the error of one is lower.
        candidates: in the order in which they are made.
        error: of one, on text that it was not fitted to.
        known: the error of ``start``, where it is known.

    Returns:
        It, and which candidate it is, counted from 1; 0 for ``start``.
    """
    best, least, place = start, error(start) if known is None else known, 0
    for number, candidate in enumerate(candidates, 1):
        found = error(candidate)
        if found < least:
            best, least, place = candidate, found, number
    return best, place
