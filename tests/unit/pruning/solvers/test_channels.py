from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prune_lab.pruning.solvers.channels import channel_order, keep_in_order, kept_score


def random_scores(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Positive, with channels of very different size side by side."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.randn(columns, generator=generator).exp()
    return torch.randn(rows, columns, generator=generator).abs() * size.sort().values


def best_of_two_groups(scores: torch.Tensor, n: int) -> float:
    """The most that any division of eight channels into two groups of four keeps."""
    best = 0.0
    for first in combinations(range(8), 4):
        order = torch.tensor([*first, *(set(range(8)) - set(first))])
        best = max(best, kept_score(scores, order, n, 4))
    return best


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_order_keeps_nearly_as_much_as_the_best_of_all(n):
    shares = []
    for seed in range(30):
        scores = random_scores(6, 8, seed)
        natural = kept_score(scores, torch.arange(8), n, 4)
        gain = kept_score(scores, channel_order(scores, n, 4), n, 4) - natural
        shares.append(gain / (best_of_two_groups(scores, n) - natural + 1e-12))
    assert sum(shares) / len(shares) > 0.8
    assert min(shares) >= 0


@given(st.integers(1, 5), st.integers(1, 6), st.sampled_from([(1, 2), (2, 4), (3, 4), (4, 8)]), st.integers(0, 1000))
def test_an_order_is_a_permutation_that_keeps_no_less_and_exactly_n_of_m(rows, groups, pattern, seed):
    n, m = pattern
    scores = random_scores(rows, groups * m, seed)
    order = channel_order(scores, n, m)
    assert order.sort().values.tolist() == list(range(groups * m))
    assert kept_score(scores, order, n, m) >= kept_score(scores, torch.arange(groups * m), n, m)
    keep = keep_in_order(scores, order, n, m)
    assert (keep[:, order].unflatten(1, (-1, m)).sum(-1) == n).all()


def test_two_large_channels_of_one_group_are_parted():
    """Of 1:2, one of two neighbours would have to go; apart, both stay."""
    scores = torch.tensor([[5.0, 4.0, 0.1, 0.2], [6.0, 5.0, 0.2, 0.1]])
    keep = keep_in_order(scores, channel_order(scores, 1, 2), 1, 2)
    assert keep.tolist() == [[True, True, False, False]] * 2


def test_equal_scores_stay_where_they_are():
    assert channel_order(torch.ones(3, 8), 2, 4).tolist() == list(range(8))


def plain_order(scores: torch.Tensor, n: int, m: int) -> list[int]:
    """Channels dealt by their total, then given anew to three groups, place by place, by trying all ways."""
    totals = scores.double().sum(0).tolist()
    ranked = sorted(range(len(totals)), key=lambda channel: -totals[channel])
    groups = [ranked[group::3] for group in range(3)]
    for place in range(m):
        moved = [group.pop(place) for group in groups]

        def kept(way: tuple[int, ...], groups=groups) -> float:
            together = [scores[:, [*group, channel]] for group, channel in zip(groups, way, strict=True)]
            return sum(float(each.double().topk(n).values.sum()) for each in together)

        for group, channel in zip(groups, max(permutations(moved), key=kept), strict=True):
            group.insert(place, channel)
    return [channel for group in groups for channel in group]


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (3, 4), (1, 4)])
def test_the_order_is_that_of_the_plain_loop(n, m):
    for seed in range(5):
        scores = torch.rand(40, 3 * m, generator=torch.Generator().manual_seed(seed))  # no two ways keep as much
        assert channel_order(scores, n, m).tolist() == plain_order(scores, n, m)
