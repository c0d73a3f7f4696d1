"""Methods that remove whole blocks: their formulas by hand, and greedy removal by brute force."""

import logging
import math
from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from prune_lab.errors import BadInput
from prune_lab.models.model_units import blocks_of, sub_blocks_of
from prune_lab.models.shrink import shrink
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.partial import PartialForward, parts_of
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods import greedy_blocks
from prune_lab.pruning.methods.angular_distance import AngularDistance, distance
from prune_lab.pruning.methods.block_influence import BlockInfluence, influence
from prune_lab.pruning.methods.greedy_blocks import GreedyBlocks
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.methods.random import Random
from prune_lab.pruning.methods.taylor_blocks import TaylorBlocks
from prune_lab.pruning.reached import check_reached
from prune_lab.pruning.target import Target

DEPTH = [
    BlockInfluence(), AngularDistance(), GreedyBlocks(), GreedyBlocks("kl"), TaylorBlocks(), Random(), Magnitude()
]  # fmt: skip


def prune(model, method, target, tokens, seed=0):
    target.check(model)
    method.check(target)
    method.check_model(model, target)
    result = method.prune(PruningContext(model, target, Calibration(tokens, batch_size=2), seed=seed))
    check_reached(model, target, method, result, {})
    return result


def without(model, gone):
    """The model without some blocks, by taking them out."""
    units = blocks_of(model)
    keep = torch.ones(units.count, dtype=torch.bool).index_fill(0, torch.tensor(gone, dtype=torch.long), False)
    shrink(model, {units.name: keep})
    return model


def loss_of(hf, tokens):
    logits = hf(tokens).logits[:, :-1]
    return float(functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))


def kl_of(hf, dense, tokens):
    here, there = (each(tokens).logits[:, :-1].log_softmax(-1) for each in (hf, dense))
    return float((there.exp() * (there - here)).sum(-1).mean())


def test_influence_and_distance_by_hand():
    before = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    after = torch.tensor([[3.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    assert influence(before, after).tolist() == pytest.approx([0, 1, 1 - math.sqrt(0.5)], abs=1e-6)
    assert distance(before, after).tolist() == pytest.approx([0, 0.5, 0.25], abs=1e-6)
    assert distance(before, -before).tolist() == pytest.approx([1, 1, 1], abs=1e-6)


def test_the_model_is_run_in_part_and_left_as_it_was(tiny_model, random_tokens, family):
    model, tokens = tiny_model(family), random_tokens(2, 12)
    forwards = [block.module.forward for block in model.blocks]
    dense = model.hf(tokens).logits
    hidden = model.hf(tokens, output_hidden_states=True).hidden_states
    with PartialForward(model, model.hf) as forward:
        assert torch.equal(forward.logits(tokens), dense)
        seen = forward.hidden(tokens)
        assert len(seen) == 4
        assert all(torch.equal(a, b) for a, b in zip(seen[:3], hidden[:3], strict=True))
        for start in range(4):  # from any block on, and from none
            assert torch.equal(forward.logits(tokens, (), start, seen[start]), dense)
        assert torch.equal(forward.after(tokens, (), 1, seen[1]), seen[2])
        without_1 = forward.logits(tokens, parts_of([1]))
        assert torch.equal(forward.after(tokens, parts_of([1]), 1, seen[1]), seen[1])
        attention = forward.logits(tokens, {(1, 0)})
    assert torch.equal(without_1, without(tiny_model(family), [1]).hf(tokens).logits)
    halved = tiny_model(family)
    sub_blocks_of(halved).apply(torch.arange(6) != 2)
    assert torch.equal(attention, halved.hf(tokens).logits)
    assert torch.equal(model.hf(tokens).logits, dense)
    assert all(block.module.forward == was for block, was in zip(model.blocks, forwards, strict=True))
    assert not any("forward" in module.__dict__ for module in model.hf.modules())


def test_block_influence_is_of_all_tokens(tiny_model, random_tokens):
    model, tokens = tiny_model("llama"), random_tokens(5, 12)
    hidden = []
    hooks = [b.module.register_forward_pre_hook(lambda _, given: hidden.append(given[0])) for b in model.blocks]
    hooks += [model.blocks[-1].module.register_forward_hook(lambda _m, _i, out: hidden.append(out))]
    model.hf(tokens)
    for hook in hooks:
        hook.remove()
    expected = [1 - float(functional.cosine_similarity(a, b, dim=-1).mean()) for a, b in pairwise(hidden)]
    result = prune(model, BlockInfluence(), Target("blocks", 0.4), tokens)
    assert list(result.notes["block_influence"].values()) == pytest.approx(expected, rel=1e-3)
    lowest = min(range(3), key=expected.__getitem__)
    assert result.notes["removed_blocks"] == [lowest]
    assert result.masks[blocks_of(model).name].tolist() == [index != lowest for index in range(3)]


@pytest.mark.parametrize("tokens_of", ["last", "all"])
def test_angular_distance_is_of_runs_of_blocks(tiny_model, random_tokens, tokens_of):
    model, tokens = tiny_model("opt"), random_tokens(5, 12)
    with PartialForward(model, model.hf) as forward:
        hidden = forward.hidden(tokens)
    if tokens_of == "last":
        hidden = [each[:, -1] for each in hidden]
    cosines = [functional.cosine_similarity(hidden[at], hidden[at + 2], dim=-1) for at in range(2)]
    expected = [float((each.arccos() / math.pi).mean()) for each in cosines]
    result = prune(model, AngularDistance(tokens_of), Target("blocks", 0.7), tokens)
    assert list(result.notes["angular_distance"].values()) == pytest.approx(expected, rel=1e-3)
    first = min(range(2), key=expected.__getitem__)
    assert result.notes["removed_blocks"] == [first, first + 1]


@pytest.mark.parametrize("criterion", ["loss", "kl"])
@pytest.mark.parametrize("name", ["gpt2", "gemma3_text", "gpt_neo"])
def test_greedy_removes_what_brute_force_finds(tiny_model, random_tokens, name, criterion):
    """The first, and of the others the second; what it says of each is of the model without the blocks."""
    model, tokens, dense = tiny_model(name), random_tokens(5, 12), tiny_model(name).hf

    def cost(gone):
        hf = without(tiny_model(name), gone).hf
        return loss_of(hf, tokens) if criterion == "loss" else kl_of(hf, dense, tokens)

    first = min(range(3), key=lambda block: cost([block]))
    second = min({0, 1, 2} - {first}, key=lambda block: cost([first, block]))
    result = prune(model, GreedyBlocks(criterion), Target("blocks", 0.7), tokens)
    assert result.notes["removed_blocks"] == [first, second]
    expected = [cost([first]), cost([first, second])]
    assert result.notes[f"{criterion}_after_each"] == pytest.approx(expected, rel=1e-3)


def test_greedy_removes_halves(tiny_model, random_tokens):
    model, tokens = tiny_model("llama"), random_tokens(5, 12)

    def cost(gone):
        halved = tiny_model("llama")
        sub_blocks_of(halved).apply(torch.ones(6, dtype=torch.bool).index_fill(0, torch.tensor(gone), False))
        return loss_of(halved.hf, tokens)

    order = []
    for _ in range(3):
        order.append(min(set(range(6)) - set(order), key=lambda unit: cost([*order, unit])))
    result = prune(model, GreedyBlocks(), Target("sub_blocks", 0.5), tokens)
    assert result.notes["removed_sub_blocks"] == order
    assert result.notes["loss_after_each"][-1] == pytest.approx(cost(order), rel=1e-3)
    assert loss_of(model.hf, tokens) == pytest.approx(cost(order), rel=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_taylor_is_the_gradient_of_the_mean_loss_times_the_weight(tiny_model, random_tokens, name):
    model, reference, tokens = tiny_model(name), tiny_model(name), random_tokens(5, 12)
    reference.hf.requires_grad_(True)
    logits = reference.hf(tokens).logits[:, :-1]
    functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    expected = [
        sum(float((each.weight * each.seen(each.module.weight.grad)).abs().sum()) for each in block.linears)
        for block in reference.blocks
    ]
    result = prune(model, TaylorBlocks(), Target("blocks", 0.4), tokens)
    assert list(result.notes["taylor"].values()) == pytest.approx(expected, rel=1e-3)
    assert result.notes["removed_blocks"] == [min(range(3), key=expected.__getitem__)]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.hf.parameters())


def test_what_is_protected_stays_and_too_much_is_refused(tiny_model, random_tokens):
    for method, left in ((GreedyBlocks(protect_first=2), 2), (GreedyBlocks(protect_first=1, protect_last=1), 1)):
        result = prune(tiny_model("opt"), method, Target("blocks", 0.34), random_tokens())
        assert result.notes["removed_blocks"] == [left]
    method = GreedyBlocks(protect_first=1, protect_last=1)
    with pytest.raises(BadInput, match=r"protect_first=1 and .*protect_last=1 leave 1 blocks, of which 2 should go"):
        method.check_model(tiny_model("opt"), Target("blocks", 0.7))
    method.check_model(tiny_model("opt"), Target("sub_blocks", 0.34))
    for bad in ({"criterion": "perplexity"}, {"protect_first": -1}, {"protect_last": 0.5}):
        with pytest.raises(BadInput, match="allowed"):
            GreedyBlocks(**bad)
    with pytest.raises(BadInput, match="last, all"):
        AngularDistance("first")


@pytest.mark.parametrize("method", DEPTH, ids=repr)
def test_the_level_is_that_of_the_range(tiny_model, random_tokens, method):
    for layers, level, count in (([1, 3], 0.5, 1), ([0, 2], 0.99, 1), (None, 0.67, 2)):
        target = Target("blocks", level, layers)
        result = prune(tiny_model("qwen2"), method, target, random_tokens())
        gone = result.notes["removed_blocks"]
        assert len(gone) == count
        assert set(gone) <= set(range(*(layers or (0, 3))))


@pytest.mark.parametrize("method", DEPTH, ids=repr)
def test_blocks_that_are_zero_go_first_and_count(tiny_model, random_tokens, method):
    """Though another is preferred; and outside the range they do not."""
    for gone in range(3):
        model = tiny_model("llama")
        blocks_of(model).apply(torch.arange(3) != gone)
        result = prune(model, method, Target("blocks", 0.4), random_tokens())
        assert result.notes["removed_blocks"] == [gone]
        result = prune(model, method, Target("blocks", 0.67), random_tokens())
        assert gone in result.notes["removed_blocks"]
    outside = prune(model, method, Target("blocks", 0.5, [0, 2]), random_tokens())
    assert len([block for block in outside.notes["removed_blocks"] if block < 2]) >= 1


def test_random_draws_by_its_seed_and_magnitude_the_least_norm(tiny_model, random_tokens):
    drawn = {
        prune(tiny_model("opt"), Random(), Target("blocks", 0.4), random_tokens(), seed).notes["removed_blocks"][0]
        for seed in range(12)
    }
    assert drawn == {0, 1, 2}
    model = tiny_model("opt")
    model.blocks[1].attention.out.write(model.blocks[1].attention.out.weight * 0.01)
    norms = [sum(float(linear.weight.square().sum()) for linear in block.linears) ** 0.5 for block in model.blocks]
    assert blocks_of(model).norm(2).tolist() == pytest.approx(norms, rel=1e-4)
    assert prune(model, Magnitude(), Target("blocks", 0.4), random_tokens()).notes["removed_blocks"] == [
        min(range(3), key=norms.__getitem__)
    ]


def test_a_level_of_less_than_a_block_is_refused(tiny_model):
    model = tiny_model("llama")
    with pytest.raises(BadInput, match=r"level=0.2 removes none of 3 blocks: .* use 0\.3334 or more"):
        Target("blocks", 0.2).check(model)
    with pytest.raises(BadInput, match=r"removes none of 2 sub-blocks"):
        Target("sub_blocks", 0.4, [1, 2]).check(model)
    Target("blocks", 0.3334).check(model)
    Target("blocks", 0.0).check(model)
    model.hf.config.do_layer_norm_before = False
    with pytest.raises(BadInput, match="normalises the residual stream"):
        Target("blocks", 0.5).check(model)


def test_the_order_is_logged(tiny_model, random_tokens, caplog):
    caplog.set_level(logging.INFO)
    order = prune(tiny_model("opt"), GreedyBlocks(), Target("blocks", 0.7), random_tokens()).notes["removed_blocks"]
    assert f"blocks that go, counted from 0: {order[0]}, {order[1]}" in caplog.text
    assert f"block {order[0]} (counted from 0) goes (1 of 2): loss" in caplog.text


def test_gradients_of_float16_weights_are_those_of_float32(tiny_model, random_tokens):
    half, tokens = tiny_model("llama", torch.float16), random_tokens(256, 60)  # so many that they underflow
    full = tiny_model("llama")
    for one, other in zip(full.hf.parameters(), half.hf.parameters(), strict=True):
        one.data = other.data.float()
    target = Target("blocks", 0.4)
    scores = [prune(model, TaylorBlocks(), target, tokens).notes["taylor"] for model in (half, full)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
    assert {parameter.dtype for parameter in half.hf.parameters()} == {torch.float16}


def test_a_choice_that_overflows_is_worse_than_all_others(tiny_model, random_tokens, monkeypatch):
    """Comparing with NaN says no to everything, so that the first choice would win."""
    monkeypatch.setattr(greedy_blocks._Trial, "costs", lambda self, free, off: {0: math.nan, 1: 2.0, 2: 1.0})
    context = PruningContext(tiny_model("llama"), Target("blocks", 0.34), Calibration(random_tokens(2, 8)))
    (keep,) = GreedyBlocks().prune(context).masks.values()
    assert keep.tolist() == [True, True, False]
