"""Divides numbers of samples by shares."""

from collections.abc import Mapping
from fractions import Fraction


def portions(shares: Mapping[str, float]) -> tuple[dict[str, Fraction], float]:
    """Divides shares by their sum.

    Args:
        shares: positive numbers by name; taken as they are written, so that 0.1 is a tenth.

    Returns:
        Shares that add up to one, and what they added up to.
    """
    exact = {name: Fraction(str(share)) for name, share in shares.items()}
    total = sum(exact.values(), Fraction(0))
    return {name: share / total for name, share in exact.items()}, float(total)


def divided(total: int, shares: Mapping[str, Fraction]) -> dict[str, int]:
    """Divides a number by shares, rounded by the largest remainder; of equal remainders, the first name's goes first.

    Args:
        total: to divide.
        shares: by name; they add up to one.

    Returns:
        Whole numbers that add up to ``total``.
    """
    counts = {name: int(total * share) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: (counts[name] - total * shares[name], name))
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def largest_total(there: Mapping[str, int], shares: Mapping[str, Fraction]) -> int:
    """Returns the largest number that can be divided by shares without one being more than there is.

    Args:
        there: what there is, by name.
        shares: by name; they add up to one.
    """
    total = min(int((there[name] + 1) / share) for name, share in shares.items())
    while any(count > there[name] for name, count in divided(total, shares).items()):
        total -= 1
    return total


def percentages(shares: Mapping[str, Fraction]) -> str:
    """Returns shares as text: ``70 % c4, 30 % wikitext2``."""
    return ", ".join(f"{float(100 * share):.3g} % {name}" for name, share in sorted(shares.items()))
