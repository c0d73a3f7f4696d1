"""Statistics of experts are those of the tokens routed to them, as a plain loop over tokens finds them."""

import logging
from functools import partial

import pytest
import torch
from torch.nn import functional

from prune_lab.models.experts import moe_of
from prune_lab.models.model_units import all_experts
from prune_lab.pruning.calibration.blocks import iterate_blocks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.collect import collect
from prune_lab.pruning.calibration.held_out import HeldOut, SplitStatistic
from prune_lab.pruning.calibration.routed import collect_saliency
from prune_lab.pruning.calibration.statistics import Hessian, InputNorm


def given_to_experts(model, tokens, index=0):
    """What reaches the experts of a block in one pass of the model: hidden states, choices and weights."""
    seen = []
    hook = moe_of(model.blocks[index]).fused.register_forward_pre_hook(lambda _module, args: seen.append(args))
    with torch.no_grad():
        model.hf(tokens)
    hook.remove()
    return seen[0]


def inputs_by_hand(moe, hidden, chosen, number):
    """What gate and up of an expert read, and what down reads, token by token, from the fused tensors."""
    gate_up, width = moe.fused.gate_up_proj[number], moe.fused.down_proj.shape[2]
    mine = [token for token in range(len(hidden)) if number in chosen[token].tolist()]
    rows = [hidden[token] for token in mine]
    inner = [functional.silu(gate_up[:width] @ row) * (gate_up[width:] @ row) for row in rows]
    return mine, rows, inner


@pytest.mark.parametrize("batch_size", [5, 2])
def test_statistics_of_experts_see_the_tokens_that_are_routed_to_them(
    tiny_model, random_tokens, moe_family, batch_size
):
    model, tokens = tiny_model(moe_family), random_tokens()
    hidden, chosen, _ = given_to_experts(model, tokens)
    assert chosen.shape == (tokens.numel(), 2)
    block, inputs = next(iterate_blocks(model, Calibration(tokens, batch_size=batch_size)))
    found, moe = collect(inputs, Hessian), moe_of(block)
    for number, expert in enumerate(moe.experts):
        _, rows, inner = inputs_by_hand(moe, hidden, chosen, number)
        assert found[expert.gate.name] is found[expert.up.name]
        for linear, values in ((expert.up, rows), (expert.down, inner)):
            assert found[linear.name].tokens == len(values) > 0
            by_hand = sum(torch.outer(value, value) for value in values) / len(values)
            torch.testing.assert_close(found[linear.name].value, by_hand, rtol=1e-4, atol=1e-5)
    assert found[block.attention.out.name].tokens == tokens.numel()


def test_an_expert_without_tokens_is_measured_on_all_of_them(tiny_model, random_tokens, caplog):
    model, tokens = tiny_model("mixtral"), random_tokens(2, 8)
    moe = moe_of(model.blocks[0])
    moe.router.weight.mul_(0)
    moe.router.weight[:2] = torch.randn(2, 32) * 0.01  # 2 to 5 are chosen where these two are below zero
    moe.router.weight[5] = -moe.router.weight[:2].sum(0)
    hidden, chosen, _ = given_to_experts(model, tokens)
    idle = sorted(set(range(6)) - set(chosen.flatten().tolist()))
    assert 0 < len(idle) < 5
    _, inputs = next(iterate_blocks(model, Calibration(tokens)))
    with caplog.at_level(logging.INFO, logger="prune_lab"):
        found = collect(inputs, InputNorm)
    listed = ", ".join(map(str, idle))
    assert f"no calibration token was routed to {len(idle)} of 6 experts ({listed})" in caplog.text
    expert = moe.experts[idle[0]]
    torch.testing.assert_close(found[expert.up.name].value, hidden.norm(dim=0))
    torch.testing.assert_close(found[expert.down.name].value, moe.hidden(idle[0], hidden).norm(dim=0))


def test_the_log_does_not_name_experts_that_are_removed(tiny_model, random_tokens, caplog):
    model = tiny_model("mixtral")
    all_experts(model)[0].apply(torch.arange(6) > 1)
    _, inputs = next(iterate_blocks(model, Calibration(random_tokens())))
    with caplog.at_level(logging.INFO, logger="prune_lab"):
        found = collect(inputs, InputNorm)
    assert "no calibration token" not in caplog.text
    assert moe_of(model.blocks[0]).experts[0].up.name in found


def test_tokens_are_held_out_of_experts_by_where_they_stand(tiny_model, random_tokens):
    model, tokens = tiny_model("olmoe"), random_tokens()
    hidden, chosen, _ = given_to_experts(model, tokens)
    calibration = Calibration(tokens, batch_size=2)
    held = HeldOut.of(calibration, 0.4)
    out = held.tokens.flatten()
    assert int(out.sum()) == 2 * 24
    _, inputs = next(iterate_blocks(model, calibration))
    found, moe = collect(inputs, partial(SplitStatistic, Hessian, held, calibration)), moe_of(model.blocks[0])
    for number, expert in enumerate(moe.experts):
        mine, rows, _ = inputs_by_hand(moe, hidden, chosen, number)
        for part, kept in ((found[expert.up.name].fitted, False), (found[expert.up.name]._held, True)):
            values = [row for token, row in zip(mine, rows, strict=True) if bool(out[token]) is kept]
            assert part.tokens == len(values)
            if values:
                by_hand = sum(torch.outer(value, value) for value in values) / len(values)
                torch.testing.assert_close(part.value, by_hand, rtol=1e-4, atol=1e-5)


def test_saliency_is_that_of_a_loop_over_tokens(tiny_model, random_tokens, moe_family):
    """The router's weights of a token add up to one, also where the family leaves them as they are (OLMoE)."""
    model, tokens = tiny_model(moe_family), random_tokens()
    hidden, chosen, weights = given_to_experts(model, tokens)
    _, inputs = next(iterate_blocks(model, Calibration(tokens, batch_size=2)))
    moe = moe_of(model.blocks[0])
    found = collect_saliency(inputs, moe)
    expected = torch.zeros(3, 6, dtype=torch.float64)
    for token in range(len(hidden)):
        for place, number in enumerate(chosen[token].tolist()):
            alone = moe.fused(hidden[token : token + 1], torch.tensor([[number]]), torch.ones(1, 1))
            gate = weights[token, place] / weights[token].sum()
            expected[:, number] += torch.tensor([1, float(alone.norm()), float(gate * alone.norm())])
    torch.testing.assert_close(torch.stack([found.tokens, found.norms, found.gated]), expected, rtol=1e-4, atol=1e-5)
    assert int(found.tokens.sum()) == 2 * tokens.numel()
