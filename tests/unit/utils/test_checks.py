import math
from dataclasses import dataclass
from typing import Any

import pytest

from prune_lab.errors import BadSetting
from prune_lab.utils.checks import (
    check_choice,
    check_flag,
    check_number,
    check_seed,
    check_text,
    check_texts,
    check_whole,
)


@dataclass
class Part:
    """Something with a field."""

    size: Any


def refusal(check: Any, value: Any, *args: Any, **how: Any) -> str:
    with pytest.raises(BadSetting) as raised:
        check(Part(value), "size", *args, **how)
    return str(raised.value)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "5", None, math.nan, [1], {"a": 1}])
def test_whole_numbers(value):
    assert "is not allowed; allowed: whole numbers of at least 1" in refusal(check_whole, value)
    check_whole(Part(1), "size")


@pytest.mark.parametrize("value", [True, "0.5", None, math.nan, math.inf, -math.inf, [0.5]])
def test_numbers(value):
    assert refusal(check_number, value).endswith("allowed: numbers")
    check_number(Part(-3), "size")
    check_number(Part(0.5), "size")


@pytest.mark.parametrize(
    ("ends", "allowed", "inside", "outside"),
    [
        ({"least": 0}, "numbers of at least 0", [0, 7], [-0.1]),
        ({"above": 0}, "numbers above 0", [0.1], [0]),
        ({"most": 1}, "numbers of at most 1", [1, -3], [1.1]),
        ({"below": 1}, "numbers below 1", [0.9], [1]),
        ({"least": 0, "below": 1}, "numbers in [0, 1)", [0, 0.9], [-0.1, 1]),
        ({"above": 0, "most": 1}, "numbers in (0, 1]", [0.1, 1], [0, 1.1]),
    ],
)
def test_ends_of_a_range(ends, allowed, inside, outside):
    for value in inside:
        check_number(Part(value), "size", **ends)
    for value in outside:
        assert refusal(check_number, value, **ends) == f"Part.size={value} is not allowed; allowed: {allowed}"


def test_null_is_allowed_where_it_means_something():
    check_whole(Part(None), "size", optional=True)
    assert refusal(check_whole, 0, optional=True, hint="null: all") == (
        "Part.size=0 is not allowed; allowed: whole numbers of at least 1, or null (all)"
    )
    for check in (check_number, check_text):
        check(Part(None), "size", optional=True)
        assert "or null" in refusal(check, True, optional=True)
    check_choice(Part(None), "size", ("a",), optional=True)
    assert refusal(check_choice, None, ("a",)) == "Part.size=null is not allowed; allowed: a"


def test_choices():
    check_choice(Part("row"), "size", ("layer", "row"))
    assert refusal(check_choice, "x", ("layer", "row")) == "Part.size='x' is not allowed; allowed: layer, row"
    assert "allowed: 1, 2" in refusal(check_choice, True, (1, 2))  # though True == 1
    assert "allowed: layer" in refusal(check_choice, ["layer"], ("layer",))


@pytest.mark.parametrize("value", [0, 1, "true", None, [True]])
def test_flags(value):
    assert refusal(check_flag, value).endswith("is not allowed; allowed: true, false")
    check_flag(Part(False), "size")


def test_texts():
    check_text(Part("a"), "size")
    check_text(Part(""), "size", empty=True)
    assert refusal(check_text, "") == "Part.size='' is not allowed; allowed: a text"
    assert "\"'5'\"" in refusal(check_text, 5)  # how to write it
    check_texts(Part(["a"]), "size", least=1)
    check_texts(Part(()), "size")
    assert "such as [a]" in refusal(check_texts, "a")
    for value in ([], [1], [""], None, 5):
        assert "a list of texts" in refusal(check_texts, value, least=1)


def test_seeds_are_those_of_torch():
    check_seed(Part(2**64 - 1), "size")
    assert "from 0 to 18446744073709551615" in refusal(check_seed, 2**64, **{})


def test_a_long_value_is_cut():
    assert len(refusal(check_whole, "x" * 5000)) < 250
