import pytest
import torch
from torch import nn

from prune_lab.errors import BadInput
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.statistics import InputNorm
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.dsnot import DSnoT
from prune_lab.pruning.methods.ria import RIA, relative_importance
from prune_lab.pruning.target import Target


def layer(weight: list[list[float]]) -> PrunableLinear:
    module = nn.Linear(len(weight[0]), len(weight), bias=False)
    module.weight.data = torch.tensor(weight)
    return PrunableLinear("layer", module)


def norms(*values: float) -> InputNorm:
    statistic = InputNorm()
    statistic.update(torch.tensor([values]))
    return statistic


def test_a_weight_counts_by_its_share_of_column_and_row():
    shares = relative_importance(torch.tensor([[1.0, -3.0], [3.0, 1.0]]))
    assert shares.tolist() == [[1 / 4 + 1 / 4, 3 / 4 + 3 / 4], [3 / 4 + 3 / 4, 1 / 4 + 1 / 4]]


def test_a_small_weight_is_kept_when_its_column_has_no_other():
    linear = layer([[2.0, 1.0], [8.0, 0.0]])  # first row: 2/10 + 2/3 against 1/1 + 1/3
    assert RIA(scope="row").solve(linear, norms(1.0, 1.0), Target(level=0.5)).tolist() == [[0.0, 1.0], [8.0, 0.0]]


@pytest.mark.parametrize(("power", "kept"), [(0.5, [0.0, 1.0]), (1.0, [2.0, 0.0])])
def test_the_norm_counts_by_its_power(power: float, kept: list[float]):
    linear = layer([[2.0, 1.0], [8.0, 0.0]])  # 0.867 * 2^power against 1.333
    linear.weight[1, 0] = 18.0  # 2/20 + 2/3 = 0.767; the norm 2.25 counts 1.5 or 2.25
    assert RIA(power, "row").solve(linear, norms(2.25, 1.0), Target(level=0.5))[0].tolist() == kept


def test_empty_rows_and_columns_have_scores():
    linear = layer([[0.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
    pruned = RIA(scope="row").solve(linear, norms(1.0, 1.0, 0.0), Target(level=0.67, budget={"layer": 0.84}))
    assert pruned.tolist() == [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


def test_rows_lose_different_numbers_unless_they_are_compared_by_themselves():
    linear, target = layer([[1.0, 1.0, 1.0, 9.0], [3.0, 3.0, 3.0, 1.0]]), Target(level=0.5)
    pruned = [RIA(scope=scope).solve(linear, norms(1.0, 1.0, 1.0, 1.0), target) for scope in ("layer", "row")]
    assert [(weight != 0).sum(1).tolist() for weight in pruned] == [[1, 3], [2, 2]]


def test_a_pattern_compares_within_groups():
    linear = layer([[1.0, 2.0, 3.0, 4.0]])
    assert RIA().solve(linear, norms(1.0, 1.0, 1.0, 1.0), Target("1:2")).tolist() == [[0.0, 2.0, 0.0, 4.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_at_a_high_level(tiny_model, random_tokens, dtype):
    model = tiny_model("llama", dtype)
    masks = RIA().prune(PruningContext(model, Target(level=0.95), Calibration(random_tokens(4, 16)))).masks
    assert all(int((~mask).sum()) == int(0.95 * mask.numel()) for mask in masks.values())
    assert torch.isfinite(model.hf(random_tokens(1, 8)).logits).all()


@pytest.mark.parametrize(("keys", "message"), [({"power": -1}, r"RIA\.power=-1"), ({"scope": "model"}, r"layer, row")])
def test_values_out_of_range_are_refused(keys, message):
    with pytest.raises(BadInput, match=message):
        RIA(**keys)


def test_permuted_channels_keep_more_of_the_score_in_an_order_that_is_told(tiny_model, random_tokens):
    model, plain = tiny_model("llama"), tiny_model("llama")
    method, tokens = RIA(permute=True), random_tokens(6, 16)
    result = method.prune(PruningContext(model, Target("2:4"), Calibration(tokens)))
    masks, orders = result.masks, result.channel_orders
    natural = RIA().prune(PruningContext(plain, Target("2:4"), Calibration(tokens)))
    assert set(orders) == set(masks)
    for name, mask in masks.items():
        assert (mask[:, orders[name]].unflatten(1, (-1, 4)).sum(-1) == 2).all()
    first = model.blocks[0].linears[0].name  # its inputs are those of the dense model in both
    assert not torch.equal(masks[first], natural.masks[first])
    assert not natural.channel_orders


def test_permuting_changes_nothing_without_a_pattern(tiny_model, random_tokens):
    masks = [
        RIA(permute=permute)
        .prune(PruningContext(tiny_model("opt"), Target(level=0.6), Calibration(random_tokens(4, 16))))
        .masks
        for permute in (False, True)
    ]
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


def test_masks_in_another_order_cannot_be_refined():
    with pytest.raises(BadInput, match=r"DSnoT\.inner\.permute=false"):
        DSnoT(RIA(permute=True)).check(Target("2:4"))
    DSnoT(RIA(permute=True)).check(Target(level=0.5))
