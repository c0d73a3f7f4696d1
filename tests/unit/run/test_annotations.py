"""Which values fit which annotations."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest

from prune_lab.pruning.methods.method import Method
from prune_lab.run.annotations import mistake_of

PART, OTHER = (
    {"_target_": f"prune_lab.{each}"} for each in ("pruning.methods.wanda.Wanda", "run.tracking.jsonl.JsonlTracker")
)
FITTING = {
    int: [0, -3],
    float: [0, 1.5],
    bool: [True, False],
    str: ["", "5"],
    Literal["a", 2]: ["a", 2],
    Sequence[int]: [[], [1, 2], (1,)],
    list[str]: [["a"]],
    Mapping[str, float]: [{}, {"a": 1}],
    dict[str, dict[str, Any]]: [{"a": {"b": [None]}}],
    int | None: [None, 1],
    Literal["median"] | Mapping[str, int]: ["median", {"a": 1}],
    Method: [PART],
    Any: [None, 1, "a", [1.5]],
}
VALUES = [
    None, True, False, 0, 1, -3, 1.5, math.nan, math.inf, 10**400, "", "5", "a", "median", "\udcff", [], [1, 2], [True],
    [math.nan], ["a"], [None], {}, {"a": 1}, {"a": True}, {"a": {"b": [None]}}, {"a": {"b": math.inf}}, {1: 1}, PART,
    OTHER, (1,), 2,
]  # fmt: skip
ALSO = {  # that fit, too
    int: [1, 2],
    float: [1, -3, 2],
    str: ["a", "median"],
    Sequence[int]: [[1, 2]],
    list[str]: [[]],
    dict[str, dict[str, Any]]: [{}],
    Mapping[str, float]: [{"a": 1}],
    int | None: [0, -3, 2],
    Literal["median"] | Mapping[str, int]: [{}],
}


def same(one: object, other: object) -> bool:
    return type(one) is type(other) and repr(one) == repr(other)


@pytest.mark.parametrize("hint", FITTING)
def test_what_fits_and_what_does_not(hint):
    fitting = [*FITTING[hint], *ALSO.get(hint, [])]
    for value in fitting:
        assert mistake_of("key", value, hint) is None, value
    for value in VALUES if hint is not Any else ():
        said = mistake_of("key", value, hint)
        assert (said is None) == any(same(value, each) for each in fitting), value
        assert said is None or (said.startswith("key") and "allowed: " in said)


def test_numbers_anywhere_are_finite():
    assert mistake_of("key", {"a": [1, {"b": math.nan}]}, Any) == (
        "key={'a': [1, {'b': nan}]} is not allowed; allowed: finite numbers"
    )


@pytest.mark.parametrize(
    ("value", "hint", "words"),
    [
        (5, str | None, "key=5 is not allowed; allowed: a text, so put it in two pairs of quotes: \"'5'\", or null"),
        (5, list[str], "a list of texts"),
        ("a", list[str], "a list of texts, such as [a]"),
        ([True], Sequence[float] | None, "key=[True] is not allowed; allowed: a list of numbers, or null"),
        ("x", Literal["a", "b"] | None, "allowed: a, b, or null"),
        (OTHER, Method, "key._target_=prune_lab.run.tracking.jsonl.JsonlTracker is not allowed"),
    ],
)
def test_messages(value, hint, words):
    assert words in str(mistake_of("key", value, hint))
