import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune_lab.pruning.allocation.budget import exact_counts, level_of, levels_of
from prune_lab.pruning.masks import count_dropped

NAMES = [f"layer{index}" for index in range(8)]


@st.composite
def problems(draw):
    """Levels, sizes, caps and a total that the caps allow."""
    names = NAMES[: draw(st.integers(1, len(NAMES)))]
    levels = {name: draw(st.floats(-0.5, 1.5)) for name in names}
    entries = {name: draw(st.integers(2, 10**9)) for name in names}
    caps = {name: draw(st.integers(0, entries[name] - 1)) for name in names}
    return levels, entries, caps, draw(st.integers(0, sum(caps.values())))


@given(problems())
def test_the_total_is_exact_and_no_cap_is_exceeded(problem):
    levels, entries, caps, total = problem
    counts = exact_counts(levels, entries, caps, total)
    assert sum(counts.values()) == total
    assert all(0 <= counts[name] <= caps[name] for name in levels)


@given(problems())
def test_a_budget_of_floats_drops_exactly_the_counts(problem):
    levels, entries, caps, total = problem
    counts = exact_counts(levels, entries, caps, total)
    budget = levels_of(counts, entries)
    assert {name: count_dropped(budget[name], entries[name]) for name in budget} == counts
    assert all(0 <= level < 1 for level in budget.values())


@given(problems())
def test_the_order_of_the_levels_is_kept(problem):
    levels, entries, caps, total = problem
    counts = exact_counts(levels, entries, caps, total)
    free = [name for name in levels if 0 < counts[name] < caps[name]]
    for one in free:
        for other in free:
            if levels[one] <= levels[other]:  # up to the weight that rounding may add or take
                assert (counts[one] - 1) / entries[one] <= (counts[other] + 1) / entries[other] + 1e-9


@given(st.integers(1, 10**12), st.data())
def test_every_count_has_its_float(entries, data):
    count = data.draw(st.integers(0, entries - 1))
    assert count_dropped(level_of(count, entries), entries) == count


def test_levels_whose_total_is_right_stay():
    assert exact_counts({"a": 0.25, "b": 0.75}, {"a": 100, "b": 100}, {"a": 99, "b": 99}, 100) == {"a": 25, "b": 75}


def test_a_shift_makes_the_total_right():
    assert exact_counts({"a": 0.2, "b": 0.4}, {"a": 100, "b": 300}, {"a": 99, "b": 299}, 180) == {"a": 30, "b": 150}


def test_what_a_cap_refuses_the_others_take():
    assert exact_counts({"a": 0.9, "b": 0.5}, {"a": 100, "b": 100}, {"a": 80, "b": 99}, 150) == {"a": 80, "b": 70}


def test_fractions_go_to_the_largest_remainder_and_of_equal_ones_to_the_first():
    entries = dict.fromkeys("abc", 10)
    assert exact_counts(dict.fromkeys("abc", 0.5), entries, dict.fromkeys("abc", 9), 16) == {"a": 6, "b": 5, "c": 5}
    assert exact_counts({"a": 0.5, "b": 0.58, "c": 0.5}, entries, dict.fromkeys("abc", 9), 16) == {
        "a": 5, "b": 6, "c": 5,
    }  # fmt: skip


def test_a_total_beyond_the_caps_is_refused():
    with pytest.raises(ValueError, match="21 weights cannot go where at most 20 may"):
        exact_counts({"a": 0.5}, {"a": 100}, {"a": 20}, 21)
