"""Masks from scores of a layer, with zeros that stay, against plain loops over lists."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prune_lab.pruning.methods.selection import counts_of_rows, keep_in_scope
from prune_lab.pruning.target import Target


def problem(rows: int, columns: int, seed: int, share: float | None) -> tuple[Tensor, Tensor | None]:
    """Positive scores, and where weights are zero: from none of the first row to a share of the last."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows, columns, generator=generator) + 0.1
    if share is None:
        return scores, None
    return scores, torch.rand(rows, columns, generator=generator) < torch.linspace(0, share, rows)[:, None]


def lowest(scores: list[float], zero: list[bool], count: int) -> set[int]:
    """The ``count`` lowest, zeros first."""
    return set(sorted(range(len(scores)), key=lambda j: (not zero[j], scores[j]))[:count])


def plain_counts(present: list[int], total: int) -> tuple[list[int], int]:
    """Raises the rows that have lost least, all by one, as long as the total allows it."""
    counts = list(present)
    if sum(present) > total:
        return counts, 0
    while True:
        least = min(counts)
        rows = [row for row, count in enumerate(counts) if count == least]
        if sum(counts) + len(rows) > total:
            return counts, total - sum(counts)
        for row in rows:
            counts[row] += 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.integers(0, 40))
def test_rows_lose_as_equally_as_their_zeros_allow(present, total):
    counts, more = counts_of_rows(torch.tensor(present), total)
    expected, left = plain_counts(present, total)
    assert counts.tolist() == expected
    assert more == left


def plain_rows(scores: Tensor, zero: Tensor, each: int, more: int) -> list[set[int]]:
    """What goes of every row; the remainder from rows whose next score is least beside their mean score."""
    present = zero.sum(1).tolist()
    counts, more = plain_counts(present, each * len(scores) + more) if any(present) else ([each] * len(scores), more)
    gone = [lowest(s, z, count) for s, z, count in zip(scores.tolist(), zero.tolist(), counts, strict=True)]
    following = {}
    for row, (values, lost) in enumerate(zip(scores.tolist(), gone, strict=True)):
        left = [value for j, value in enumerate(values) if j not in lost]
        if counts[row] == min(counts) and left:
            following[row] = min(left) / (sum(values) / len(values))
    for row in sorted(following, key=lambda row: following[row])[:more]:
        gone[row] = lowest(scores[row].tolist(), zero[row].tolist(), counts[row] + 1)
    return gone


def as_sets(keep: Tensor) -> list[set[int]]:
    return [set((~row).nonzero().flatten().tolist()) for row in keep]


@pytest.mark.parametrize("share", [None, 0.2, 0.9])
@pytest.mark.parametrize("level", [0.0, 0.31, 0.5, 0.77])
@pytest.mark.parametrize("budget", [False, True])
def test_rows_are_those_of_the_plain_loop(share, level, budget):
    for seed in range(3):
        scores, zero = problem(7, 12, seed, share)
        target = Target(level=0.9, budget={"x": level}) if budget else Target(level=level)
        each, more = divmod(math.floor(level * 84 + 1e-9), 7) if budget else (math.floor(level * 12 + 1e-9), 0)
        keep = keep_in_scope(scores, target, "x", "row", zero)
        no_zero = torch.zeros_like(scores, dtype=torch.bool)
        assert as_sets(keep) == plain_rows(scores, no_zero if zero is None else zero, each, more)


@pytest.mark.parametrize("share", [None, 0.2, 0.9])
@pytest.mark.parametrize("level", [0.0, 0.31, 0.77])
def test_a_layer_is_that_of_the_plain_loop(share, level):
    scores, zero = problem(7, 12, 0, share)
    flat = [False] * 84 if zero is None else zero.flatten().tolist()
    gone = lowest(scores.flatten().tolist(), flat, max(math.floor(level * 84 + 1e-9), sum(flat)))
    keep = keep_in_scope(scores, Target(level=0.9, budget={"x": level}), "x", "layer", zero)
    assert as_sets(keep.view(1, -1)) == [gone]


@pytest.mark.parametrize("share", [None, 0.2, 0.9])
@pytest.mark.parametrize("scope", ["layer", "row"])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 3)])
def test_groups_are_those_of_the_plain_loop(share, scope, n, m):
    scores, zero = problem(7, 12, 0, share)
    groups = scores.view(-1, m)
    zeros = torch.zeros_like(groups, dtype=torch.bool) if zero is None else zero.view(-1, m)
    gone = [lowest(s, z, max(m - n, sum(z))) for s, z in zip(groups.tolist(), zeros.tolist(), strict=True)]
    assert as_sets(keep_in_scope(scores, Target(f"{n}:{m}"), "x", scope, zero).view(-1, m)) == gone


def test_rows_of_tiny_scores_are_compared_by_their_shares():
    """Of two rows that are one another's multiple the first loses the remainder, however small its scores are."""
    scores = torch.tensor([[3e-30, 1e-30, 2e-30], [6.0, 2.0, 4.0], [3.0, 3.0, 3.0]])
    keep = keep_in_scope(scores, Target(level=0.9, budget={"x": 0.12}), "x", "row")
    assert (~keep).nonzero().tolist() == [[0, 1]]
