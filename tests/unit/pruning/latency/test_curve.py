"""Seconds between measured widths, and budgets of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune_lab.errors import BadInput
from prune_lab.pruning.latency.curve import Curve, TimeBudget, grid, options


def test_between_two_points_it_is_linear():
    curve = Curve((0, 4, 8), (0.0, 2.0, 3.0))
    assert [curve.at(kept) for kept in (0, 1, 4, 6, 8)] == [0.0, 0.5, 2.0, 2.5, 3.0]


@pytest.mark.parametrize("kept", [-1, 9])
def test_beyond_its_ends_there_is_nothing(kept):
    with pytest.raises(ValueError, match="0 to 8"):
        Curve((0, 4, 8), (0.0, 2.0, 3.0)).at(kept)


@pytest.mark.parametrize(("counts", "seconds"), [((0,), (0.0,)), ((1, 2), (0.0, 1.0)), ((0, 2, 2), (0.0, 1.0, 1.0)),
                                                 ((0, 2), (0.0,))])  # fmt: skip
def test_what_is_no_curve_is_refused(counts, seconds):
    with pytest.raises(BadInput, match="ascend from 0"):
        Curve(counts, seconds)


@given(st.lists(st.floats(0, 10), min_size=4, max_size=4), st.integers(0, 12))
def test_the_least_is_that_of_all_numbers_that_may_stay(seconds, min_units):
    curve = Curve((0, 4, 8, 12), tuple(seconds))
    assert curve.least(min_units) == pytest.approx(min(curve.at(kept) for kept in range(min_units, 13)))


def test_what_is_predicted_is_what_is_fixed_and_the_sum_over_layers():
    curves = {"a": Curve((0, 2), (0.0, 4.0)), "b": Curve((0, 3), (0.0, 9.0))}
    budget = TimeBudget(1.0, curves, 7.0)
    assert budget.dense == 14.0
    assert budget.of({"a": 1, "b": 2}) == 1 + 2 + 3
    assert budget.fits(7.0) and not budget.fits(7.001)


@given(st.integers(1, 400), st.integers(1, 40))
def test_a_grid_goes_from_none_to_all(count, steps):
    found = grid(count, steps)
    assert found[0] == 0 and found[-1] == count and len(found) <= steps + 1
    assert count > steps or found == list(range(count + 1))


@given(st.integers(1, 2000), st.integers(0, 5), st.integers(1, 300))
def test_options_leave_what_must_stay(count, least, most):
    found = options(count, least, most)
    assert found[0] == 0 and found[-1] == max(0, count - least) and len(found) <= most + 1
    assert found == sorted(set(found))
