import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.statistics import InputNorm
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.masks import keep_n_of_m
from prune_lab.pruning.methods.wanda_variant import WandaVariant, cumulative_shares
from prune_lab.pruning.target import Target


def layer(weight) -> PrunableLinear:
    weight = torch.as_tensor(weight)
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight.data = weight.clone()
    return PrunableLinear("layer", module)


def norms(*values: float) -> InputNorm:
    statistic = InputNorm()
    statistic.update(torch.tensor([values]))
    return statistic


def bisected(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """The authors' rule: the row's lowest scores go while they sum to at most alpha of it; bisection over alpha."""
    ascending, order = scores.double().sort(dim=1, stable=True)
    low, high = 0.0, 1.0
    for _ in range(60):
        alpha = (low + high) / 2
        gone = ascending.cumsum(1) <= alpha * ascending.sum(1, keepdim=True)
        low, high = (alpha, high) if gone.sum() <= sparsity * scores.numel() else (low, alpha)
    gone = ascending.cumsum(1) <= low * ascending.sum(1, keepdim=True)
    return torch.empty_like(gone).scatter_(1, order, ~gone)


def test_each_weight_completes_a_share_of_its_row():
    assert cumulative_shares(torch.tensor([[3.0, 1.0, 4.0], [0.0, 0.0, 0.0]])).tolist() == [
        [0.5, 0.125, 1.0],
        [0.0] * 3,
    ]


def test_a_row_with_few_large_weights_loses_more():
    linear = layer([[1.0, 1.0, 1.0, 97.0], [20.0, 21.0, 29.0, 30.0]])
    pruned = WandaVariant().solve(linear, norms(1.0, 1.0, 1.0, 1.0), Target(level=0.5))
    assert pruned.tolist() == [[0.0, 0.0, 0.0, 97.0], [0.0, 21.0, 29.0, 30.0]]


def test_the_norm_of_an_input_counts():
    linear = layer([[2.0, 3.0]])
    assert WandaVariant().solve(linear, norms(9.0, 1.0), Target(level=0.5)).tolist() == [[2.0, 0.0]]


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_it_is_what_bisection_finds(level):
    weight = torch.randn(20, 50, generator=torch.Generator().manual_seed(1))
    kept = WandaVariant().solve(layer(weight), norms(*[1.0] * 50), Target(level=level)) != 0
    assert torch.equal(kept, bisected(weight.abs(), level))


@settings(max_examples=40, deadline=None)
@given(out=st.integers(1, 6), inputs=st.integers(1, 12), level=st.floats(0, 0.95), seed=st.integers(0, 99))
def test_the_count_is_exact_and_rows_lose_their_lowest(out, inputs, level, seed):
    weight = torch.randint(1, 5, (out, inputs), generator=torch.Generator().manual_seed(seed)).float()
    target = Target(level=level)
    kept = WandaVariant().solve(layer(weight), norms(*[1.0] * inputs), target) != 0
    assert int((~kept).sum()) == target.dropped("layer", out * inputs)
    for row, keep in zip(weight, kept, strict=True):
        if keep.any() and not keep.all():
            assert row[~keep].max() <= row[keep].min()


def test_the_highest_scores_go_last_but_they_do_go():
    linear, ones = layer([[1.0, 2.0, 97.0], [0.0, 0.0, 0.0], [5.0, 6.0, 7.0]]), norms(1.0, 1.0, 1.0)
    left = [WandaVariant().solve(linear, ones, Target(level=level)).tolist() for level in (0.78, 0.89)]
    assert left == [[[0.0, 0.0, 97.0], [0.0] * 3, [0.0, 0.0, 7.0]], [[0.0] * 3, [0.0] * 3, [0.0, 0.0, 7.0]]]


def test_a_budget_is_met_by_name():
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    target = Target(level=0.9, budget={"layer": 0.4})
    assert int((WandaVariant().solve(layer(weight), norms(*[1.0] * 7), target) == 0).sum()) == 14


def test_a_pattern_compares_within_groups():
    linear = layer([[1.0, 2.0, 3.0, 4.0]])
    pruned = WandaVariant().solve(linear, norms(9.0, 1.0, 1.0, 1.0), Target("1:2"))
    assert torch.equal(pruned != 0, keep_n_of_m(torch.tensor([[9.0, 2.0, 3.0, 4.0]]), 1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["opt", "llama", "gemma3_text"])
def test_nothing_overflows_at_95_percent(tiny_model, random_tokens, family, dtype):
    model = tiny_model(family, dtype)
    masks = WandaVariant().prune(PruningContext(model, Target(level=0.95), Calibration(random_tokens(4, 16)))).masks
    assert all(int((~mask).sum()) == int(0.95 * mask.numel()) for mask in masks.values())
    assert torch.isfinite(model.hf(random_tokens(2, 8)).logits).all()
