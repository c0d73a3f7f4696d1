import pytest
import torch
from torch import nn

from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.calibration.blocks import iterate_blocks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.collect import collect
from prune_lab.pruning.calibration.statistics import InputNorm
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.masks import keep_top
from prune_lab.pruning.methods import wanda
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.sharing import RowsOf
from prune_lab.pruning.target import Target


def layer(weight: list[list[float]]) -> PrunableLinear:
    module = nn.Linear(len(weight[0]), len(weight), bias=False)
    module.weight.data = torch.tensor(weight)
    return PrunableLinear("layer", module)


def norms(*rows: list[float]) -> InputNorm:
    statistic = InputNorm()
    statistic.update(torch.tensor(rows))
    return statistic


def test_a_loud_input_saves_a_small_weight():
    linear = layer([[1.0, 2.0], [-1.0, -2.0]])
    quiet = Wanda().solve(linear, norms([1.0, 1.0]), Target(level=0.5))
    loud = Wanda().solve(linear, norms([3.0, 1.0]), Target(level=0.5))
    assert quiet.tolist() == [[0.0, 2.0], [0.0, -2.0]]
    assert loud.tolist() == [[1.0, 0.0], [-1.0, 0.0]]


def test_weights_compete_within_their_row_only():
    linear = layer([[100.0, 200.0, 300.0, 400.0], [1.0, 2.0, 3.0, 4.0]])
    pruned = Wanda().solve(linear, norms([1.0, 1.0, 1.0, 1.0]), Target(level=0.75))
    assert pruned.tolist() == [[0.0, 0.0, 0.0, 400.0], [0.0, 0.0, 0.0, 4.0]]


def test_a_pattern_compares_scores_within_groups():
    linear = layer([[1.0, 2.0, 3.0, 4.0]])
    assert Wanda().solve(linear, norms([9.0, 1.0, 1.0, 1.0]), Target("1:2")).tolist() == [[1.0, 0.0, 0.0, 4.0]]


@pytest.mark.parametrize("level", [0.5, 0.333])
def test_the_masks_are_those_of_the_formula(tiny_model, random_tokens, level):
    dense, model = tiny_model("llama"), tiny_model("llama")
    calibration = Calibration(random_tokens(4, 16), batch_size=3)
    masks = Wanda().prune(PruningContext(model, Target(level=level), calibration)).masks
    for (block, inputs), pruned in zip(iterate_blocks(dense, calibration), model.blocks, strict=True):
        statistics = collect(inputs, InputNorm)
        for linear, other in zip(block.linears, pruned.linears, strict=True):
            keep = keep_top(linear.weight.abs() * statistics[linear.name].value, level)
            assert torch.equal(masks[linear.name], keep)
            assert torch.equal(other.weight, linear.weight * keep)
            linear.write(other.weight)  # the next block sees this one pruned


def test_exactly_the_floor_of_each_row_goes(tiny_model, random_tokens):
    masks = (
        Wanda().prune(PruningContext(tiny_model("gpt2"), Target(level=0.29), Calibration(random_tokens(2, 8)))).masks
    )
    assert all(((~mask).sum(1) == int(0.29 * mask.shape[1])).all() for mask in masks.values())


def test_a_budget_is_met_exactly_and_the_remainder_goes_where_the_next_score_is_relatively_least():
    linear = layer([[1.0, 2.0, 3.0, 4.0], [10.0, 10.0, 30.0, 40.0], [0.1, 1.0, 1.0, 1.0]])  # next / mean: .8, .44, 1.3
    asked = Target(level=0.9, budget={"layer": 0.42})  # 5 of 12: one a row, and two more
    pruned = Wanda().solve(linear, norms([1.0, 1.0, 1.0, 1.0]), asked)
    assert pruned.tolist() == [[0.0, 0.0, 3.0, 4.0], [0.0, 0.0, 30.0, 40.0], [0.0, 1.0, 1.0, 1.0]]
    assert asked.dropped("layer", 12) == 5


def test_rows_that_are_empty_already_count():
    linear = layer([[1.0, 2.0, 3.0, 4.0], [10.0, 12.0, 30.0, 40.0], [0.0, 0.0, 0.0, 0.0]])
    pruned = Wanda().solve(linear, norms([1.0, 1.0, 1.0, 1.0]), Target(level=0.5))  # 6 of 12, of which 4 are gone
    assert pruned.tolist() == [[0.0, 2.0, 3.0, 4.0], [0.0, 12.0, 30.0, 40.0], [0.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("at_once", [1, 7, 1 << 18])
def test_rows_may_be_scored_a_few_at_a_time(monkeypatch, at_once):
    """Also where a single row has more inputs than are scored at once."""
    monkeypatch.setattr(wanda, "_SCORES_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(5, 3, generator=generator), torch.rand(1, 3, generator=generator)
    pruned = Wanda().solve(layer(weight.tolist()), norms(*inputs.tolist()), Target(level=0.4))
    least = (weight.abs() * inputs).argmin(1)
    assert torch.equal(pruned, weight.scatter(1, least[:, None], 0.0))


def test_a_budget_is_met_whatever_is_scored_at_a_time(monkeypatch):
    monkeypatch.setattr(wanda, "_SCORES_AT_ONCE", 1)
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    asked = Target(level=0.9, budget={"layer": 0.4})
    pruned = Wanda().solve(layer(weight.tolist()), norms([1.0, 1.0, 1.0, 1.0]), asked)
    assert int((pruned == 0).sum()) == 9  # one of every row, and three more


@pytest.mark.parametrize(
    "zeros, target, apart",
    [
        (0, Target(level=0.5), True),
        (4, Target(level=0.5), True),
        (5, Target(level=0.5), False),  # one more zero than a row is to lose: the others lose less
        (5, Target(level=0.5, pattern="2:4"), True),
        (0, Target(level=0.5, budget={"layer": 0.5}), False),
    ],
)
def test_rows_are_solved_apart_only_where_they_do_not_depend_on_others(zeros, target, apart):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 8, generator=generator)
    weight[1, :zeros] = 0
    linear, statistic = layer(weight.tolist()), norms(torch.rand(8, generator=generator).tolist())
    assert Wanda().solves_rows(linear, target) == apart
    if apart:
        halves = [RowsOf(linear.name, linear.module, linear, rows) for rows in (slice(0, 3), slice(3, 6))]
        parts = [Wanda().solve(half, statistic, target) for half in halves]
        assert torch.equal(torch.cat(parts), Wanda().solve(linear, statistic, target))
