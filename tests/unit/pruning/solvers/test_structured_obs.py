from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prune_lab.errors import NotPositiveDefinite
from prune_lab.pruning.solvers import structured_obs
from prune_lab.pruning.solvers.gram import output_energy
from prune_lab.pruning.solvers.structured_obs import damped, dead_inputs, eliminate, refit_columns


def problem(rows: int = 4, columns: int = 8, seed: int = 0, tokens: int = 30) -> tuple[Tensor, Tensor]:
    """A weight, and the damped second moment of inputs that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(columns, tokens, generator=generator, dtype=torch.float64)
    inputs[1] = inputs[0] + 0.3 * inputs[2]
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64), damped(inputs @ inputs.T, 0.01)


def without(columns: int, gone: Tensor | tuple[int, ...], group: int = 1) -> Tensor:
    keep = torch.ones(columns // group, dtype=torch.bool)
    keep[torch.as_tensor(gone, dtype=torch.int64)] = False
    return keep.repeat_interleave(group)


def error_without(weight: Tensor, hessian: Tensor, keep: Tensor) -> float:
    return output_energy(weight - refit_columns(weight, hessian, keep), hessian)


@given(st.integers(0, 50), st.sampled_from([1, 2, 4]))
@settings(max_examples=20, deadline=None)
def test_each_loss_is_what_the_least_squares_error_rises_by_and_the_least_of_all(seed, group):
    weight, hessian = problem(seed=seed)
    groups = 8 // group
    found = eliminate(weight, hessian, group, groups - 1)
    gone: list[int] = []
    before = 0.0
    for index, loss in zip(found.order.tolist(), found.losses.tolist(), strict=True):
        rises = {
            other: error_without(weight, hessian, without(8, (*gone, other), group)) - before
            for other in range(groups)
            if other not in gone
        }
        assert rises[index] == pytest.approx(min(rises.values()), rel=1e-6)
        assert loss == pytest.approx(rises[index], rel=1e-6)
        gone.append(index)
        before += rises[index]


@pytest.mark.parametrize("most", [1024, 3, 0])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_zeros_that_stay_are_no_part_of_a_row(share, most, monkeypatch):
    """Against a system of its own for each row; ``most``: of zeros in rows that are corrected, not fitted anew."""
    monkeypatch.setattr(structured_obs, "_FEW_ZEROS", most)
    weight, hessian = problem(rows=12, columns=16)
    zero = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < share
    weight, keep = weight.masked_fill(zero, 0), without(16, (2, 7, 11))
    found = refit_columns(weight, hessian, keep, zero)
    expected = torch.zeros_like(weight)
    for row in range(len(weight)):
        own = (keep & ~zero[row]).nonzero().flatten()
        expected[row, own] = torch.linalg.solve(hessian[own[:, None], own], hessian[own] @ weight[row])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    exact = (zero & keep).count_nonzero(1) <= most
    torch.testing.assert_close(found[exact], expected[exact], rtol=1e-9, atol=1e-10)
    assert not bool(found[:, ~keep].any()) and not bool(found[zero].any())


def test_a_refit_is_the_best_of_all_weights_on_its_columns():
    weight, hessian = problem()
    keep = without(8, (0, 3))
    best = refit_columns(weight, hessian, keep)
    assert not best[:, ~keep].any()
    gradient = (best - weight) @ hessian
    torch.testing.assert_close(gradient[:, keep], torch.zeros(4, 6, dtype=torch.float64))
    for seed in range(5):
        other = best + 0.01 * torch.randn(4, 8, generator=torch.Generator().manual_seed(seed)) * keep
        assert output_energy(weight - best, hessian) < output_energy(weight - other, hessian)


def test_nothing_changes_where_nothing_goes():
    weight, hessian = problem()
    assert torch.equal(refit_columns(weight, hessian, torch.ones(8, dtype=torch.bool)), weight)


@pytest.mark.parametrize("removed", [1, 2, 3])
def test_the_greedy_choice_is_near_the_best_subset(removed):
    """Brute force over all subsets; the first removal is the best, those after it need not be."""
    ratios = []
    for seed in range(20):
        weight, hessian = problem(seed=seed)
        order = eliminate(weight, hessian, 1, removed).order
        greedy = error_without(weight, hessian, without(8, order))
        best = min(error_without(weight, hessian, without(8, gone)) for gone in combinations(range(8), removed))
        assert best <= greedy * (1 + 1e-9)
        ratios.append(greedy / best)
    assert max(ratios) == pytest.approx(1) if removed == 1 else sum(ratios) / len(ratios) < 1.25


def test_more_columns_than_a_panel_go_in_the_order_of_single_updates():
    """The plain form: the weights and the whole inverse after each column."""
    weight, hessian = problem(rows=10, columns=150, tokens=400)
    found = eliminate(weight, hessian, 1, 140)
    current, inverse = weight.clone(), torch.linalg.inv(hessian)
    gone = torch.zeros(150, dtype=torch.bool)
    for index, loss in zip(found.order.tolist(), found.losses.tolist(), strict=True):
        scores = current.square().sum(0) / inverse.diagonal()
        assert index == int(scores.masked_fill(gone, torch.inf).argmin())
        assert loss == pytest.approx(float(scores[index]), rel=1e-6)
        row = inverse[index].clone()
        current -= current[:, index, None] * (row / row[index])
        inverse -= row[:, None] * row / row[index]
        gone[index] = True
        inverse.diagonal()[gone] = 1
    torch.testing.assert_close(current * ~gone, refit_columns(weight, hessian, ~gone), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("together", [2, 7, 100, 10**12])
def test_several_together_are_those_with_the_lowest_losses_and_lose_what_least_squares_says(together):
    """The plain form: a block update of the weights and of the whole inverse after each round; panels are of 64."""
    weight, hessian = problem(rows=10, columns=150, tokens=400)
    found = eliminate(weight, hessian, 1, 140, together)
    current, inverse = weight.clone(), torch.linalg.inv(hessian)
    gone = torch.zeros(150, dtype=torch.bool)
    for order in found.order.split(together):
        scores = (current.square().sum(0) / inverse.diagonal()).masked_fill(gone, torch.inf)
        assert set(order.tolist()) == set(scores.argsort()[: len(order)].tolist())
        update = torch.linalg.solve(inverse[order[:, None], order], inverse[order])
        current -= current[:, order] @ update
        inverse -= inverse[:, order] @ update
        gone[order] = True
        inverse.diagonal()[gone] = 1
    assert float(found.losses.sum()) == pytest.approx(error_without(weight, hessian, ~gone), rel=1e-6)
    few = eliminate(weight, hessian, 1, 60, together)
    assert torch.equal(few.order, found.order[:60])
    torch.testing.assert_close(few.losses, found.losses[:60])


def test_groups_of_one_column_are_single_columns():
    from prune_lab.pruning.solvers import structured_obs

    weight, hessian = problem(columns=30, tokens=100)
    single = eliminate(weight, hessian, 1, 29)
    inverse = torch.linalg.inv(hessian)
    grouped = structured_obs._eliminate_groups(weight.T @ weight, inverse, 1, 29, 1)
    assert torch.equal(single.order, grouped.order)
    torch.testing.assert_close(single.losses, grouped.losses)


def test_with_independent_inputs_the_order_is_that_of_weight_and_input_norms():
    weight, _ = problem()
    scale = torch.linspace(1, 9, 8, dtype=torch.float64)
    found = eliminate(weight, scale.diag(), 1, 7)
    assert torch.equal(found.order, (weight.square().sum(0) * scale).argsort()[:7])
    keep = without(8, found.order)
    torch.testing.assert_close(refit_columns(weight, scale.diag(), keep), weight * keep)


@pytest.mark.parametrize("group", [1, 2])
def test_the_scale_of_the_inputs_and_the_type_of_the_weights_do_not_matter(group):
    weight, hessian = problem()
    order = eliminate(weight, hessian, group, 3).order
    assert torch.equal(eliminate(weight, 1e-6 * hessian, group, 3).order, order)
    assert torch.equal(eliminate(weight.float(), hessian, group, 3).order, order)


def test_dead_inputs_go_first_and_cost_nothing():
    weight, hessian = problem()
    hessian = hessian.clone()
    hessian[5], hessian[:, 5] = 0, 0
    dead = dead_inputs(hessian)
    assert dead.nonzero().flatten().tolist() == [5]
    weight[:, 5] *= 1e4
    found = eliminate(weight.masked_fill(dead, 0), damped(hessian, 0.01), 1, 1)
    assert found.order.tolist() == [5] and float(found.losses[0]) == 0


def test_dead_inputs_leave_the_damping_of_others_as_it_is():
    _, hessian = problem()
    some, live = hessian.clone(), torch.arange(len(hessian)) != 5
    some[5], some[:, 5] = 0, 0
    alone = damped(hessian[live][:, live], 0.1)
    assert torch.equal(damped(some, 0.1)[live][:, live], alone)
    assert torch.equal(damped(torch.zeros_like(hessian), 0.1), 1.1 * torch.eye(len(hessian), dtype=torch.float64))


def test_a_matrix_that_is_not_positive_definite_is_refused():
    weight, hessian = problem()
    flat = torch.ones_like(hessian)
    with pytest.raises(NotPositiveDefinite, match="not positive definite"):
        eliminate(weight, flat, 1, 2)
    with pytest.raises(NotPositiveDefinite, match="not positive definite"):
        refit_columns(weight, -hessian, without(8, (1,)))
    assert not torch.equal(damped(flat, 0.01), flat)
    eliminate(weight, damped(flat, 0.01), 1, 2)


def test_damping_leaves_what_it_was_given():
    _, hessian = problem()
    before = hessian.clone()
    damped(hessian, 0.5)
    assert torch.equal(hessian, before)


@given(st.integers(0, 50), st.sampled_from([(1, 2), (1, 4), (2, 2)]))
@settings(max_examples=20, deadline=None)
def test_parts_lose_one_each_before_one_loses_its_next(seed, sizes):
    """By brute force over the groups that may go: the one whose loss is least."""
    group, parts = sizes
    weight, hessian = problem(seed=seed)
    each = 8 // group // parts
    found = eliminate(weight, hessian, group, parts * (each - 1), parts=parts)
    gone: list[int] = []
    for index, loss in zip(found.order.tolist(), found.losses.tolist(), strict=True):
        lost = [sum(other // each == part for other in gone) for part in range(parts)]
        open_ = [other for other in range(8 // group) if other not in gone and lost[other // each] == min(lost)]
        before = error_without(weight, hessian, without(8, gone, group))
        rises = {other: error_without(weight, hessian, without(8, (*gone, other), group)) - before for other in open_}
        assert rises[index] == pytest.approx(min(rises.values()), rel=1e-6)
        assert loss == pytest.approx(rises[index], rel=1e-6, abs=1e-9)
        gone.append(index)
    assert [sum(other // each == part for other in gone) for part in range(parts)] == [each - 1] * parts
