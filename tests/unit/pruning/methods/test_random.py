import pytest
import torch

from prune_lab.errors import BadInput
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.random import SCOPES, Random
from prune_lab.pruning.target import Target


def masks_of(model, tokens, seed=0, **target):
    return (
        Random().prune(PruningContext(model, Target(**{"level": 0.5, **target}), Calibration(tokens), seed=seed)).masks
    )


def test_the_choice_depends_on_the_seed_and_the_layer_only(tiny_model, random_tokens):
    tokens = random_tokens(2, 8)
    masks = masks_of(tiny_model("opt"), tokens)
    again = masks_of(tiny_model("opt", seed=7), tokens[:1])  # other weights and data
    part = masks_of(tiny_model("opt"), tokens, layers=[2, 3])  # pruned alone
    other = masks_of(tiny_model("opt"), tokens, seed=1)
    assert all(torch.equal(masks[name], again[name]) for name in masks)
    assert all(torch.equal(masks[name], part[name]) for name in part)
    assert not any(torch.equal(masks[name], other[name]) for name in masks)


def test_layers_of_one_shape_get_different_masks(tiny_model, random_tokens):
    masks = masks_of(tiny_model("opt"), random_tokens(2, 8))
    square = [mask for mask in masks.values() if mask.shape == (32, 32)]
    assert not any(torch.equal(square[0], mask) for mask in square[1:])


def test_exactly_the_floor_of_each_layer_goes(tiny_model, random_tokens):
    for mask in masks_of(tiny_model("llama"), random_tokens(2, 8), level=0.333).values():
        assert int((~mask).sum()) == int(0.333 * mask.numel())


def test_it_does_not_touch_the_generators_of_the_process(tiny_model, random_tokens):
    model, tokens = tiny_model("opt"), random_tokens(2, 8)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    masks_of(model, tokens)
    assert torch.equal(torch.rand(1), expected)


def test_units_that_are_zero_already_are_the_first_to_go(tiny_model, random_tokens):
    model, target = tiny_model("opt"), Target("neurons", 0.5)
    dead = torch.arange(64) >= 40
    for units in target.units(model):
        units.apply(~dead)
    masks = Random().prune(PruningContext(model, target, Calibration(random_tokens(2, 8)))).masks
    assert all(int(keep.sum()) == 32 and not keep[dead].any() for keep in masks.values())


def test_one_draw_for_the_model_removes_a_quarter_of_heads_that_come_in_twos(tiny_model, random_tokens):
    """Within blocks the share is rounded down to none."""
    model, target = tiny_model("llama"), Target("heads", 0.25)
    context = PruningContext(model, target, Calibration(random_tokens(2, 8)))
    within, over = ([*Random(scope=scope).select_units(target.units(model), target, 0).values()] for scope in SCOPES)
    counts = {len(keep) for keep in within}
    assert counts == {2}
    assert all(bool(keep.all()) for keep in within)
    masks = Random(scope="model").prune(context).masks
    assert [keep.tolist() for keep in masks.values()] == [keep.tolist() for keep in over]
    assert sum(int((~keep).sum()) for keep in over) == int(0.25 * sum(len(keep) for keep in over)) > 0


def test_a_draw_that_leaves_a_block_without_heads_is_refused(tiny_model, random_tokens):
    context = PruningContext(tiny_model("llama"), Target("heads", 0.8), Calibration(random_tokens(2, 8)))
    with pytest.raises(
        BadInput, match=r"keeps some units \(model\.layers\.0\.heads: 1 of 2\); use Random\.scope=layer"
    ):
        Random(scope="model").prune(context)


def test_weights_are_not_drawn_from_the_whole_model():
    with pytest.raises(BadInput, match=r"Random\.scope='model' is for neurons and heads"):
        Random(scope="model").check(Target(level=0.5))
