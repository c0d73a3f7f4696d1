"""Exchanges of columns that went for columns that stayed."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prune_lab.pruning.solvers.exchange import _Support, exchange
from prune_lab.pruning.solvers.gram import output_energy
from prune_lab.pruning.solvers.structured_obs import damped, eliminate, refit_columns


def problem(seed: int, rows: int = 3, columns: int = 10) -> tuple[Tensor, Tensor]:
    """A weight, and the second moment of inputs that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    inputs = inputs @ torch.randn(columns, 40, generator=generator, dtype=torch.float64)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64), damped(inputs @ inputs.T, 0.01)


def kept(columns: int, gone: Tensor | tuple[int, ...]) -> Tensor:
    keep = torch.ones(columns, dtype=torch.bool)
    keep[torch.as_tensor(gone, dtype=torch.int64)] = False
    return keep


def error_of(weight: Tensor, hessian: Tensor, keep: Tensor, group: int = 1) -> float:
    return output_energy(weight - refit_columns(weight, hessian, keep.repeat_interleave(group)), hessian)


@given(st.integers(0, 1000), st.sampled_from([1, 2]), st.integers(1, 4), st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_as_many_stay_and_the_error_never_rises(seed, group, removed, trials):
    weight, hessian = problem(seed)
    count = 10 // group
    before = kept(count, torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:removed])
    after = exchange(weight.float(), hessian, group, before, trials)
    assert after.count_nonzero() == before.count_nonzero()
    assert torch.equal(after, before) or (
        error_of(weight.float().double(), hessian, after, group)
        < error_of(weight.float().double(), hessian, before, group)
    )
    assert trials or torch.equal(after, before)


@pytest.mark.parametrize("group", [1, 2])
def test_what_each_exchange_would_change_is_what_brute_force_says(group):
    weight, hessian = problem(3)
    keep = kept(10 // group, (0, 3))
    found = _Support.of(weight, hessian, group, keep)
    error = error_of(weight, hessian, keep, group)
    assert found.error == pytest.approx(error)
    changes = found.changes()
    assert changes.shape == (10 // group - 2, 2)
    for row, go in enumerate(keep.nonzero().flatten()):
        for column, back in enumerate((0, 3)):
            other = keep.clone()
            other[go], other[back] = False, True
            change = error_of(weight, hessian, other, group) - error
            assert float(changes[row, column]) == pytest.approx(change)


@pytest.mark.parametrize("group", [1, 2])
def test_in_the_end_no_exchange_of_two_lowers_the_error(group):
    weight, hessian = problem(5, columns=12)
    count = 12 // group
    ended = exchange(weight, hessian, group, kept(count, tuple(range(count // 2))), 100)
    error = error_of(weight, hessian, ended, group)
    for go in ended.nonzero().flatten():
        for back in (~ended).nonzero().flatten():
            other = ended.clone()
            other[go], other[back] = False, True
            assert error_of(weight, hessian, other, group) >= error * (1 - 1e-8)


def test_it_comes_nearer_to_the_best_subset_than_going_one_by_one():
    """Brute force over all subsets of five of ten."""
    one_by_one, exchanged = [], []
    for seed in range(25):
        weight, hessian = problem(seed)
        begun = kept(10, eliminate(weight, hessian, 1, 5).order)
        ended = exchange(weight, hessian, 1, begun, 10)
        best = min(error_of(weight, hessian, kept(10, gone)) for gone in combinations(range(10), 5))
        one_by_one.append(error_of(weight, hessian, begun) / best)
        exchanged.append(error_of(weight, hessian, ended) / best)
        assert 1 - 1e-9 <= exchanged[-1] <= one_by_one[-1] * (1 + 1e-9)
    assert sum(exchanged) / 25 - 1 < 0.5 * (sum(one_by_one) / 25 - 1)


@pytest.mark.parametrize("keep", [torch.ones(10, dtype=torch.bool), torch.zeros(10, dtype=torch.bool)])
def test_where_nothing_can_be_exchanged_nothing_is(keep):
    assert torch.equal(exchange(*problem(0), 1, keep, 5), keep)


@given(st.integers(0, 1000), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_parts_keep_as_many_as_they_have(seed, removed):
    weight, hessian = problem(seed)
    generator = torch.Generator().manual_seed(seed)
    before = torch.cat([kept(5, torch.randperm(5, generator=generator)[:removed]) for _ in range(2)])
    after = exchange(weight, hessian, 1, before, 6, parts=2)
    assert after.view(2, 5).count_nonzero(1).tolist() == [5 - removed] * 2
    if torch.equal(after, before):  # no exchange within a part lowers the error
        for start in (0, 5):
            for back, go in [(b, g) for b in range(start, start + 5) for g in range(start, start + 5)]:
                if before[go] and not before[back]:
                    other = before.clone()
                    other[back], other[go] = True, False
                    assert error_of(weight, hessian, other) >= error_of(weight, hessian, before) * (1 - 1e-6)
    else:
        assert error_of(weight, hessian, after) < error_of(weight, hessian, before)
