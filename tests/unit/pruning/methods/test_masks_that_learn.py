"""What the masks of GUM and of hard concrete gates see and draw, and when a shortfall is told."""

import logging
import math

import pytest
import torch
from torch import nn

from prune_lab.errors import BadInput
from prune_lab.models.units import Units
from prune_lab.pruning.live_mask import UnitMask
from prune_lab.pruning.masks import Masks
from prune_lab.pruning.methods.gum import SimilarityMask, similarity
from prune_lab.pruning.methods.hard_concrete import GateMask
from prune_lab.pruning.methods.movement import Movement
from prune_lab.pruning.methods.soft_movement import SoftMovement
from prune_lab.pruning.methods.trained import TrainedMethod


class Things(Units):
    kind = "things"


def units(*counts: int) -> list[Units]:
    return [Things(f"layer {index}", (), count) for index, count in enumerate(counts)]


@pytest.mark.parametrize(("tokens", "stride"), [(None, 1), (24, 1), (23, 2), (12, 2), (11, 3), (1, 24)])
def test_the_similarities_are_those_of_evenly_spaced_tokens(tokens, stride):
    mask = SimilarityMask(units(5)[0], torch.zeros(5), tokens)
    h = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
    mask._watch(nn.Linear(5, 2), (h,))
    mask._watch(nn.Linear(5, 2).eval(), (h,))  # what is not trained does not count
    assert mask.batch is not None
    seen = h.view(24, 5)[::stride]
    torch.testing.assert_close(mask.batch.triu(), (seen.T @ seen).triu())
    mask._watch(nn.Linear(5, 2), (h,))
    torch.testing.assert_close(mask.batch.triu(), 2 * (seen.T @ seen).triu())


def test_neurons_that_hardly_move_resemble_none():
    """The product of two norms has 1e-6 added."""
    mask = SimilarityMask(units(2)[0], torch.zeros(2))
    assert similarity(torch.full((2, 2), 1e-6), mask).tolist() == pytest.approx([0.5, 0.5])
    assert similarity(torch.zeros(2, 2), mask).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("drawn", "noise"), [(0.0, math.log(1e-6)), (1.0, -math.log(1e-6)), (0.25, math.log(1 / 3))])
def test_a_draw_is_never_certain(monkeypatch, drawn, noise):
    monkeypatch.setattr(torch, "rand", lambda shape, generator: torch.full(shape, drawn))
    mask = GateMask(units(3)[0], torch.zeros(3), torch.Generator())
    mask.draw()
    assert mask.noise.tolist() == pytest.approx([noise] * 3, rel=5e-3)


@pytest.mark.parametrize(("kept", "told"), [(520, False), (521, True), (530, True)])
def test_two_hundredths_less_than_asked_for_are_told(caplog, kept, told):
    masks = Masks({"a": torch.arange(1000) < kept})
    with caplog.at_level(logging.WARNING):
        Movement(min_units=None)._warn_of_shortfall(masks, "neurons", 0.5)
    assert ("not the 50.0 % asked for" in caplog.text) is told
    assert "only method.min_units" not in caplog.text


def test_only_layers_at_their_floor_are_named(caplog):
    masks = Masks({name: torch.arange(10) < kept for name, kept in (("a", 4), ("b", 3), ("c", 5))})
    Movement(min_units=4)._warn_of_shortfall(masks, "heads", 0.5)
    assert caplog.messages[-1] == "only method.min_units=4 heads are left in a"


@pytest.mark.parametrize(
    ("counts", "level", "floor", "fits"),
    [
        ((10, 10), 0.5, 5, True),
        ((10, 10), 0.55, 5, False),  # 9 are left
        ((10, 4), 0.1, 4, True),
        ((10, 3), 0.1, 4, False),  # one layer has fewer to begin with
        ((10, 10), 0.9, None, True),
        ((10, 10), 0.95, None, False),
        ((10,), 0.9, 1, True),
        ((11, 18, 19), 1 / 3, 11, True),  # of 48, 0.333...3 is 15 and leaves 33
    ],
)
def test_counts_fit_where_every_layer_can_keep_its_floor(counts, level, floor, fits):
    method: TrainedMethod = Movement(min_units=floor)
    if fits:
        method.check_counts(units(*counts), level)
    else:
        with pytest.raises(BadInput, match="fewer than"):
            method.check_counts(units(*counts), level)


@pytest.mark.parametrize(
    ("floor", "level", "kept"), [(1, 0.5, 2), (1, 0.9, 1), (3, 0.5, 3), (6, 0.5, 4), (1, 0.0, 4), (None, 0.75, 1)]
)
def test_a_layer_keeps_its_best_units_and_its_floor(floor, level, kept):
    scores = {"a": torch.tensor([0.3, 0.1, 0.4, 0.2])}
    keep = Movement(scope="layer", min_units=floor).select_mask(scores, level)["a"]
    assert keep.tolist() == [score in sorted([0.3, 0.1, 0.4, 0.2])[4 - kept :] for score in (0.3, 0.1, 0.4, 0.2)]


@pytest.mark.parametrize("floor", [1, 2])
def test_one_cut_for_all_leaves_the_best_of_every_layer(floor):
    scores = {"a": torch.tensor([[0.1, 0.3], [0.2, 0.05]]), "b": torch.tensor([5.0, 4.0, 6.0, 7.0])}
    keep = Movement(min_units=floor).select_mask(scores, 0.5)
    best = scores["a"].flatten().argsort(descending=True)[:floor].sort().values
    assert keep["a"].flatten().nonzero().flatten().tolist() == best.tolist()
    assert int(keep["b"].sum()) == 4 - floor
    assert scores["a"].max() == 0.3  # they are not changed
    assert keep["a"].shape == (2, 2)


@pytest.mark.parametrize(("floor", "kept"), [(None, 1), (1, 1), (5, 5)])
def test_one_unit_stays_where_no_floor_is_set(floor, kept):
    assert Movement(min_units=floor).least_kept == kept


def test_gates_are_between_zero_and_one_and_never_shut_without_chance():
    mask = GateMask(units(3)[0], torch.tensor([-20.0, 0.0, 20.0]), torch.Generator())
    assert mask().tolist() == pytest.approx([0.01, 0.5, 1.0])
    mask.drawn = True  # without noise
    assert mask().tolist() == pytest.approx([0.0, 0.5, 1.0])
    mask.settle()
    mask.set(torch.tensor([True, False, True]))
    assert mask.bias_values().tolist() == pytest.approx([0.01, 0.0, 1.0])


def test_draws_go_on_where_a_saved_state_left_them():
    masks = [GateMask(units(4)[0], torch.zeros(4), torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    masks[0].draw()
    masks[1].load_state_dict(masks[0].state_dict())
    for mask in masks:
        mask.draw()
    assert torch.equal(masks[0].noise, masks[1].noise)


@pytest.mark.parametrize(("sparsity", "final", "share"), [(0.25, 0.5, 0.5), (0.6, 0.6, 1), (0, 0.6, 0), (0, 0, 1)])
def test_the_soft_penalty_is_the_mean_sigmoid_of_a_layer_averaged_over_layers(sparsity, final, share):
    scores = ([0.0, -2.0, 3.0], [1.0])
    live = [UnitMask(each, torch.tensor(score), learned=True) for each, score in zip(units(3, 1), scores, strict=True)]
    means = [sum(1 / (1 + math.exp(-score)) for score in each) / len(each) for each in scores]
    found = SoftMovement(weight=7.0).penalty(live, sparsity, final)
    assert float(found.detach()) == pytest.approx(7.0 * share * sum(means) / 2)
