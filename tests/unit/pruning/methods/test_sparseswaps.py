import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prune_lab.errors import BadInput
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods import sparseswaps
from prune_lab.pruning.methods.sparseswaps import SparseSwaps, swap
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.target import Target

ROW = Target(level=0.5)


def problem(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A dense weight, a mask with half of each group of four, and a Hessian with strong correlations."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3 * columns, columns, generator=generator)
    x += 2 * torch.randn(3 * columns, 1, generator=generator)
    dense = torch.randn(rows, columns, generator=generator)
    keep = torch.rand(rows, columns // 2, 2, generator=generator).argsort(-1).flatten(1).bool()
    return dense, keep, x.T @ x / len(x)


def errors(dense: Tensor, weight: Tensor, hessian: Tensor) -> Tensor:
    off = (dense - weight).double()
    return ((off @ hessian.double()) * off).sum(1)


def test_two_weights_that_cancel_are_pruned_together():
    hessian = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])  # inputs 0 and 1 are the same
    dense = torch.tensor([[2.0, -2.0, 1.0]])
    refined = SparseSwaps(Wanda()).refine(dense, torch.tensor([[2.0, 0.0, 0.0]]), hessian, ROW)
    assert refined.tolist() == [[0.0, 0.0, 1.0]]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([4, 8, 12]), st.sampled_from(["2:4", "unstructured"]))
def test_the_error_never_rises_and_counts_stay(seed: int, columns: int, pattern: str):
    dense, keep, hessian = problem(5, columns, seed)
    target = ROW if pattern == "unstructured" else Target(pattern)
    refined = SparseSwaps(Wanda()).refine(dense, dense * keep, hessian, target)
    assert torch.equal((refined != 0).sum(1), keep.sum(1))
    assert torch.equal(refined, dense * (refined != 0))
    assert (errors(dense, refined, hessian) <= errors(dense, dense * keep, hessian) * (1 + 1e-5)).all()
    if target.n_of_m:
        assert ((refined != 0).unflatten(1, (-1, 4)).sum(2) == 2).all()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dropped", [2, 3, 4])
def test_no_single_swap_improves_the_result(seed: int, dropped: int):
    dense, _, hessian = problem(7, 6, seed)
    keep = torch.arange(6).expand(7, 6) >= dropped
    refined = SparseSwaps(Wanda()).refine(dense, dense * keep, hessian, ROW)
    reached = errors(dense, refined, hessian)
    for j, k in itertools.permutations(range(6), 2):
        swapped = refined.clone()
        swapped[:, j], swapped[:, k] = 0, dense[:, k]
        legal = (refined[:, j] != 0) & (refined[:, k] == 0)
        first = errors(dense, dense * keep, hessian)
        assert (errors(dense, swapped, hessian) >= reached - 1e-5 * first)[legal].all()


def test_rows_may_keep_different_numbers_and_zeros_stay_out():
    dense, _, hessian = problem(4, 6, 0)
    dense[:, 5] = 0
    keep = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 1, 0]]).bool()
    refined = SparseSwaps(Wanda()).refine(dense, dense * keep, hessian, ROW)
    assert (refined != 0).sum(1).tolist() == [5, 0, 1, 3]


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("target", [ROW, Target("2:4")])
def test_rows_with_nothing_to_exchange_stay(target: Target, kept: bool):
    dense, _, hessian = problem(3, 8, 0)
    pruned = dense * kept
    assert torch.equal(SparseSwaps(Wanda()).refine(dense, pruned, hessian, target), pruned)


def test_max_swaps_bounds_the_exchanges_of_a_row():
    dense, keep, hessian = problem(20, 12, 1)
    for most in (0, 1, 2):
        refined = SparseSwaps(Wanda(), max_swaps=most).refine(dense, dense * keep, hessian, ROW)
        assert int(((refined != 0) & ~keep).sum(1).max()) == most


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_at_a_high_level(tiny_model, random_tokens, dtype):
    model = tiny_model("llama", dtype)
    masks = (
        SparseSwaps(Wanda()).prune(PruningContext(model, Target(level=0.95), Calibration(random_tokens(4, 16)))).masks
    )
    assert all(((~mask).sum(1) == int(0.95 * mask.shape[1])).all() for mask in masks.values())
    assert torch.isfinite(model.hf(random_tokens(1, 8)).logits).all()


def test_a_negative_number_of_swaps_is_refused():
    with pytest.raises(BadInput, match=r"SparseSwaps\.max_swaps=-1"):
        SparseSwaps(Wanda(), max_swaps=-1)


def plain_swaps(dense: Tensor, keep: Tensor, hessian: Tensor, most: int, group: int) -> list[list[bool]]:
    """The best exchange within a group, row by row, while one lowers the row's error by a millionth of the first."""
    rows = []
    for weight, row in zip(dense.double(), keep.clone(), strict=True):
        first = error = loss(weight, row, hessian)
        for _ in range(most):
            flipped = []
            for j, k in itertools.permutations(range(len(row)), 2):
                if row[j] and not row[k] and weight[k] != 0 and j // group == k // group:
                    other = row.clone()
                    other[j], other[k] = False, True
                    flipped.append((float(loss(weight, other, hessian)), other))
            if not flipped or min(flipped, key=lambda each: each[0])[0] >= error - 1e-6 * first:
                break
            error, row = min(flipped, key=lambda each: each[0])
        rows.append(row.tolist())
    return rows


def loss(weight: Tensor, keep: Tensor, hessian: Tensor) -> Tensor:
    gone = weight * ~keep
    return gone @ hessian.double() @ gone


@pytest.mark.parametrize("most", [1, 3, 50])
@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
def test_swaps_are_those_of_the_plain_loop(pattern: str, most: int):
    dense, keep, hessian = problem(8, 12, 3)
    dense[:, 7] = 0
    dense[1] = 0
    if pattern == "unstructured":
        keep &= torch.arange(12) > 3  # fewer kept than pruned
        keep[3, 4:8] = True
    keep &= dense != 0
    target = ROW if pattern == "unstructured" else Target(pattern)
    swapped = keep.clone()
    swap(dense, swapped, hessian, most, target.n_of_m and target.n_of_m[1])
    assert swapped.tolist() == plain_swaps(dense, keep, hessian, most, 4 if target.n_of_m else 12)
    assert not torch.equal(swapped, keep)
    refined = SparseSwaps(Wanda(), max_swaps=most).refine(dense, dense * keep, hessian, target)
    assert torch.equal(refined, dense * swapped)


@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
def test_rows_that_are_taken_in_parts_end_as_all_at_once(pattern: str, monkeypatch: pytest.MonkeyPatch):
    dense, keep, hessian = problem(9, 12, 4)
    target, found = ROW if pattern == "unstructured" else Target(pattern), []
    for rows in (1, 4, 100):
        monkeypatch.setattr(sparseswaps, "_rows_at_once", lambda *_, rows=rows: rows)
        found.append(SparseSwaps(Wanda()).refine(dense, dense * keep, hessian, target))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize(("rest", "swapped"), [(1.9e6, True), (2.1e6, False)])
def test_a_gain_counts_from_a_millionth_of_the_rows_first_error_on(rest: float, swapped: bool):
    """Two groups: a swap in the first gains 3 - 1, one in the second would lose."""
    dense = torch.tensor([[1.0, 3.0**0.5, 1e4, rest**0.5]])
    keep = torch.tensor([[True, False, True, False]])
    swap(dense, keep, torch.eye(4), 5, 2)
    assert keep.tolist() == [[not swapped, swapped, True, False]]
