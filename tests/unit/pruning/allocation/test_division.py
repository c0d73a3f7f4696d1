from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune_lab.pruning.allocation.division import divide, lower_hull

STEP, TOP = 10, 4  # points of the brute force: 0, 10, ..., 40 weights of each part


def convex(draw):
    steps = sorted(draw(st.lists(st.integers(0, 100), min_size=TOP, max_size=TOP)))
    return [(STEP * index, float(sum(steps[:index]))) for index in range(TOP + 1)]


@st.composite
def three_curves(draw):
    return {name: convex(draw) for name in "abc"}


@given(three_curves(), st.integers(0, 3 * TOP))
def test_it_is_the_best_of_all_divisions_on_the_grid(curves, steps):
    total = steps * STEP
    best = min(
        sum(dict(curves[name])[count] for name, count in zip(curves, counts, strict=True))
        for counts in product(range(0, STEP * TOP + 1, STEP), repeat=3)
        if sum(counts) == total
    )
    counts = divide(curves, total)
    assert sum(counts.values()) == total
    assert sum(dict(curves[name])[count] for name, count in counts.items()) == pytest.approx(best)


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 10)), min_size=1, max_size=12))
def test_no_point_lies_below_the_hull(points):
    hull = lower_hull(points)
    for count, error in points:
        before = max((corner for corner in hull if corner[0] <= count), key=lambda corner: corner[0])
        after = min((corner for corner in hull if corner[0] >= count), key=lambda corner: corner[0])
        share = (count - before[0]) / (after[0] - before[0]) if after != before else 0
        assert before[1] + share * (after[1] - before[1]) <= error + 1e-9


def test_a_point_above_the_line_is_left_out():
    assert lower_hull([(0, 0.0), (20, 4.0), (10, 3.0)]) == [(0, 0.0), (20, 4.0)]
    assert lower_hull([(0, 0.0), (20, 4.0), (10, 1.0), (10, 2.0)]) == [(0, 0.0), (10, 1.0), (20, 4.0)]


def test_the_flattest_goes_first_and_the_last_may_end_between_two_points():
    curves = {"a": [(0, 0.0), (10, 1.0), (20, 5.0)], "b": [(0, 0.0), (10, 2.0), (20, 4.0)]}
    assert divide(curves, 15) == {"a": 10, "b": 5}
    assert divide(curves, 35) == {"a": 15, "b": 20}


def test_a_total_out_of_reach_is_refused():
    with pytest.raises(ValueError, match="reach to 10 weights, not to 11"):
        divide({"a": [(0, 0.0), (10, 1.0)]}, 11)
