"""Numbers divided by shares: exact, and as close as whole numbers can be."""

import random
from fractions import Fraction

import pytest

from prune_lab.data.shares import divided, largest_total, percentages, portions


@pytest.mark.parametrize(
    ("total", "shares", "expected"),
    [
        (10, {"a": 0.7, "b": 0.3}, {"a": 7, "b": 3}),  # 10 * 0.7 is 7.000000000000001 in floats
        (128, {"a": 0.7, "b": 0.3}, {"a": 90, "b": 38}),  # 89.6 and 38.4
        (10, {"a": 1, "b": 1, "c": 1}, {"a": 4, "b": 3, "c": 3}),
        (1, {"b": 1, "a": 1}, {"a": 1, "b": 0}),  # equal remainders: by name, not by place
        (5, {"a": 0.1, "b": 0.2, "c": 0.7}, {"a": 1, "b": 1, "c": 3}),  # 0.5, 1.0 and 3.5
    ],
)
def test_the_largest_remainders_are_rounded_up(total, shares, expected):
    assert divided(total, portions(shares)[0]) == expected


def test_any_division_adds_up_and_is_off_by_less_than_one():
    generator = random.Random(0)
    for _ in range(300):
        shares, _ = portions({f"s{n}": generator.uniform(1e-6, 5) for n in range(generator.randint(1, 9))})
        total = generator.randint(0, 500)
        counts = divided(total, shares)
        assert sum(counts.values()) == total
        assert all(abs(counts[name] - total * share) < 1 for name, share in shares.items())


def test_shares_are_divided_by_their_sum():
    assert portions({"a": 7, "b": 3}) == ({"a": Fraction(7, 10), "b": Fraction(3, 10)}, 10)
    assert portions({"a": 0.1, "b": 0.2, "c": 0.7})[1] == 1
    assert portions({"a": 1e-5})[0] == {"a": 1}


@pytest.mark.parametrize(
    ("there", "shares", "total"),
    [
        ({"a": 70, "b": 1000}, {"a": 0.7, "b": 0.3}, 100),
        ({"a": 1, "b": 1}, {"a": 0.4, "b": 0.6}, 2),  # 0.8 and 1.2, which are one each
        ({"a": 0, "b": 9}, {"a": 1, "b": 1}, 0),
    ],
)
def test_as_much_is_taken_as_there_is_of_the_scarcest(there, shares, total):
    shares, _ = portions(shares)
    assert largest_total(there, shares) == total
    assert any(count > there[name] for name, count in divided(total + 1, shares).items())


def test_shares_are_told_in_percent():
    assert percentages(portions({"b": 2, "a": 1})[0]) == "33.3 % a, 66.7 % b"
