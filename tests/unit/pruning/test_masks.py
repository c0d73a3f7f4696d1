from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prune_lab.pruning.masks import (
    count_dropped,
    keep_all_but,
    keep_all_but_counts,
    keep_global,
    keep_n_of_m,
    keep_top,
    sparsity_of,
)

FEW_VALUES = (-3.0, -1.0, -0.0, 0.0, 0.5, 1.0, 1.0009765625, 1e-30, float("inf"))
values = st.one_of(st.sampled_from(FEW_VALUES), st.floats(-10, 10, width=16))
levels = st.one_of(st.sampled_from([0.0, 0.29, 0.5, 0.58, 0.999]), st.floats(0, 0.9999))
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
hypothesis_settings = settings(max_examples=150, deadline=None)


def brute_force(scores: Sequence[float], drop: int) -> list[bool]:
    """Drops by sorting; of equal scores, the first in the row goes first."""
    by_score = sorted(range(len(scores)), key=lambda index: (scores[index], index))
    dropped = set(by_score[:drop])
    return [index not in dropped for index in range(len(scores))]


def brute_force_rows(scores: Tensor, drop: int) -> Tensor:
    return torch.tensor([brute_force(row, drop) for row in scores.tolist()])


@st.composite
def matrices(draw: st.DrawFn, multiple_of: int = 1) -> Tensor:
    rows, columns = draw(st.integers(1, 4)), multiple_of * draw(st.integers(1, 12))
    entries = draw(st.lists(values, min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(entries).view(rows, columns).to(draw(dtypes))


@pytest.mark.parametrize(
    ("sparsity", "entries", "dropped"),
    [
        (0.5, 7, 3),
        (0.29, 100, 29),
        (0.57, 100, 57),
        (0.7, 10, 7),
        (0.0, 5, 0),
        (0.999, 3, 2),
        (0.1, 2_359_296, 235_929),
    ],
)
def test_the_count_is_the_floor_of_the_decimal_that_was_written(sparsity, entries, dropped):
    assert count_dropped(sparsity, entries) == dropped


def test_the_lowest_score_of_each_row_goes():
    scores = torch.tensor([[1.0, -5.0, 3.0, 2.0], [9.0, 8.0, 0.0, 7.0]])
    assert keep_top(scores, 0.25).tolist() == [[True, False, True, True], [True, True, False, True]]
    assert keep_top(scores, 0.75).tolist() == [[False, False, True, False], [True, False, False, False]]


def test_of_equal_scores_the_first_goes_first():
    assert keep_top(torch.ones(4), 0.5).tolist() == [False, False, True, True]
    assert keep_top(torch.tensor([0.0, -0.0, 0.0, 5.0]), 0.5).tolist() == [False, False, True, True]
    assert keep_n_of_m(torch.ones(1, 8), 1, 4).tolist() == [[False, False, False, True] * 2]
    masks = keep_global({"a": torch.ones(2), "b": torch.ones(2)}, 0.75)
    assert [masks["a"].tolist(), masks["b"].tolist()] == [[False, False], [False, True]]


def test_nothing_is_dropped_at_zero():
    scores = torch.zeros(3, 5)
    assert keep_top(scores, 0.0).all()
    assert keep_top(scores, 0.19).all()  # less than one entry of five
    assert all(mask.all() for mask in keep_global({"a": scores}, 0.0).values())


@hypothesis_settings
@given(matrices(), levels)
def test_keep_top_equals_sorting(scores, sparsity):
    keep = keep_top(scores, sparsity)
    assert keep.dtype == torch.bool
    assert torch.equal(keep, brute_force_rows(scores, count_dropped(sparsity, scores.shape[1])))


@hypothesis_settings
@given(matrices(), st.data())
def test_keep_all_but_drops_exactly_as_many_as_it_is_told(scores, data):
    drop = data.draw(st.integers(0, scores.shape[1]))
    keep = keep_all_but(scores, drop)
    assert ((~keep).sum(1) == drop).all()
    assert torch.equal(keep, brute_force_rows(scores, drop))


@hypothesis_settings
@given(scores=matrices(), data=st.data())
def test_each_row_loses_as_many_as_it_is_told_and_nan_is_the_highest(scores, data):
    """Most rows lose as many as most others, and few rows are taken at a time."""
    rows, columns = scores.shape
    common, at_once = data.draw(st.integers(0, columns)), data.draw(st.sampled_from([1, 2 * columns, 2**24]))
    drop = torch.tensor([data.draw(st.one_of(st.just(common), st.integers(0, columns))) for _ in range(rows)])
    odd = torch.tensor(
        data.draw(st.lists(st.sampled_from([0, 1, 2]), min_size=rows * columns, max_size=rows * columns))
    )
    scores = scores.masked_fill(odd.view(rows, columns) == 1, -torch.inf)
    scores = scores.masked_fill(odd.view(rows, columns) == 2, torch.nan)
    ranked = scores.float().nan_to_num(nan=1e38, posinf=1e37)  # beyond all values in use
    expected = [brute_force(row, count) for row, count in zip(ranked.tolist(), drop.tolist(), strict=True)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("prune_lab.pruning.masks._AT_ONCE", at_once)
        assert keep_all_but_counts(scores, drop).tolist() == expected


@hypothesis_settings
@given(st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4), (4, 8), (5, 7), (2, 2), (10, 16)]), st.data())
def test_keep_n_of_m_equals_sorting_every_group(n_of_m, data):
    n, m = n_of_m
    scores = data.draw(matrices(multiple_of=m))
    groups = scores.view(-1, m)
    expected = brute_force_rows(groups, m - n).view_as(scores)
    assert torch.equal(keep_n_of_m(scores, n, m), expected)


def test_n_of_m_groups_are_consecutive_inputs_of_a_row():
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0, 10.0, 20.0, 30.0, 40.0]])
    assert keep_n_of_m(scores, 2, 4).tolist() == [[True, True, False, False, False, False, True, True]]


def test_n_of_m_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="multiple of 4"):
        keep_n_of_m(torch.ones(2, 6), 2, 4)


def test_a_transposed_tensor_gives_the_same_mask_as_its_copy():
    scores = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(keep_top(scores.T, 0.5), keep_top(scores.T.contiguous(), 0.5))
    assert torch.equal(keep_n_of_m(scores.T, 2, 4), keep_n_of_m(scores.T.contiguous(), 2, 4))
    assert torch.equal(keep_global({"a": scores.T}, 0.5)["a"], keep_global({"a": scores.T.contiguous()}, 0.5)["a"])


def test_scores_are_not_changed():
    scores = torch.randn(4, 8)
    before = scores.clone()
    keep_top(scores, 0.5), keep_n_of_m(scores, 2, 4), keep_global({"a": scores}, 0.5)
    assert torch.equal(scores, before)


def test_double_precision_scores_that_differ_in_the_last_bits_are_told_apart():
    scores = torch.tensor([1.0 + 3e-12, 1.0 + 1e-12, 1.0 + 2e-12], dtype=torch.float64)
    assert keep_all_but(scores, 1).tolist() == [True, False, True]


@hypothesis_settings
@given(st.lists(matrices(), min_size=1, max_size=4), levels)
def test_one_cut_for_all_equals_keep_top_of_the_concatenation(scores, sparsity):
    named = {f"linear layer{index}": score for index, score in enumerate(scores)}
    masks = keep_global(named, sparsity)
    assert {name: mask.shape for name, mask in masks.items()} == {name: score.shape for name, score in named.items()}
    together = torch.cat([mask.flatten() for mask in masks.values()])
    expected = keep_top(torch.cat([score.flatten().float() for score in scores]), sparsity)
    assert torch.equal(together, expected)


def test_the_sparsity_of_masks_is_the_share_that_is_false():
    masks = {"a": torch.tensor([True, False]), "b": torch.tensor([[False, False]])}
    assert sparsity_of(masks) == 0.75
    assert sparsity_of({}) == 0.0


def test_groups_of_more_than_256_are_counted():
    scores = torch.randperm(600, generator=torch.Generator().manual_seed(0)).float()[None]
    keep = keep_n_of_m(scores, 200, 300)
    expected = torch.cat([group >= group.sort().values[100] for group in scores.view(2, 300)])[None]
    assert torch.equal(keep, expected)
