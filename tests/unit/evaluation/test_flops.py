"""Multiply-adds: by hand, by PyTorch's counter, with zeros, and of models that were made smaller."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from prune_lab.evaluation.flops import count_macs, live_heads
from prune_lab.models.decoding import pass_with_cache
from prune_lab.models.model_units import all_experts, all_heads, all_neurons
from prune_lab.models.shrink import shrink
from prune_lab.pruning.masks import Masks

PROMPT, WINDOW = 24, 8
GATED = 3 * 32 * 48
PLAIN = 2 * 32 * 64
GROUPED = 2 * 32 * 32 + 2 * 32 * 16  # query, output; key and value of 2 heads of 8
FULL = 4 * 32 * 32
BLOCK = {  # the matrices of a block, one multiply-add a weight and token
    "opt": FULL + PLAIN,
    "llama": GROUPED + GATED,
    "mistral": GROUPED + GATED,
    "qwen2": GROUPED + GATED,
    "qwen3": GROUPED + GATED,
    "gemma3_text": GROUPED + GATED,
    "gpt2": FULL + 2 * 32 * 128,
    "gpt_neo": FULL + 2 * 32 * 128,
    "gpt_neox": FULL + PLAIN,
}
HEAD = 64 * 32
SLIDING = {"mistral": 3, "gemma3_text": 2}  # blocks whose cache holds the last 7 tokens only


def test_a_prompt_and_a_token_by_hand(tiny_model, random_tokens, family):
    counted = count_macs(tiny_model(family), random_tokens(1, PROMPT))
    prompt = PROMPT * (3 * BLOCK[family] + HEAD) + 3 * 2 * 32 * PROMPT * PROMPT
    assert counted["prefill"].dense == prompt
    sliding = SLIDING.get(family, 0)
    keys = (3 - sliding) * (PROMPT + 1) + sliding * WINDOW
    assert counted["decode"].dense == 3 * BLOCK[family] + HEAD + 2 * 32 * keys
    assert counted["decode"].by_part == {"blocks": 3 * BLOCK[family], "other": HEAD, "attention": 2 * 32 * keys}
    assert [each.nonzero for each in counted.values()] == [each.dense for each in counted.values()]


@torch.no_grad()
def test_pytorch_counts_the_same(tiny_model, random_tokens, family):
    model, tokens = tiny_model(family), random_tokens(1, PROMPT)
    model.hf.set_attn_implementation("eager")
    counted, cache = count_macs(model, tokens), None
    for part, given in (("prefill", tokens), ("decode", tokens[:, :1])):
        with FlopCounterMode(display=False) as counter:
            cache = pass_with_cache(model.hf, given, cache)
        rotary = sum(
            sum(flops.values()) for name, flops in counter.get_flop_counts().items() if name.endswith("rotary_emb")
        )
        assert 2 * counted[part].dense == counter.get_total_flops() - rotary


def test_half_of_the_weights_take_half_of_their_multiply_adds(tiny_model, random_tokens, family):
    model = tiny_model(family)
    for linear in model.linears:
        linear.write(linear.weight * (torch.arange(linear.shape[1]) % 2 == 0))
    for macs, tokens in zip(count_macs(model, random_tokens(1, PROMPT)).values(), (PROMPT, 1), strict=True):
        assert macs.dense - macs.nonzero == tokens * 3 * BLOCK[family] // 2


@pytest.mark.parametrize("kept", [(20, 20, 20), (20, 1, 31)], ids=["equal", "unequal"])
def test_a_masked_model_without_its_zeros_costs_what_the_shrunk_one_does(tiny_model, random_tokens, family, kept):
    masked, shrunk, masks = tiny_model(family), tiny_model(family), Masks()
    for units, width in zip(all_neurons(masked), kept, strict=True):
        masks[units.name] = torch.arange(units.count) < width
    for index, units in enumerate(all_heads(masked)):
        masks[units.name] = torch.arange(units.count) > (index - 1 if units.count == 4 else index - 2)
    for units in (*all_neurons(masked), *all_heads(masked)):
        units.apply(masks[units.name])
    shrink(shrunk, masks)
    tokens = random_tokens(1, PROMPT)
    before, after = count_macs(masked, tokens), count_macs(shrunk, tokens)
    for part in ("prefill", "decode"):
        assert before[part].dense > before[part].nonzero == after[part].dense == after[part].nonzero


def test_a_shrunk_model_by_hand(tiny_model, random_tokens):
    model, masks = tiny_model("opt"), Masks()
    for units, width in zip(all_neurons(model), (5, 64, 1), strict=True):
        masks[units.name] = torch.arange(64) < width
    masks[all_heads(model)[1].name] = torch.tensor([True, False, False, False])
    shrink(model, masks)
    counted = count_macs(model, random_tokens(1, 10))["prefill"]
    assert counted.by_part == {
        "blocks": 10 * (2 * 4 * 32 * 32 + 4 * 32 * 8 + 2 * 32 * (5 + 64 + 1)),
        "other": 10 * HEAD,
        "attention": 2 * 10 * 10 * (32 + 8 + 32),
    }


def test_experts_are_counted_by_the_tokens_that_go_to_them(tiny_model, random_tokens, moe_family):
    model, tokens = tiny_model(moe_family), random_tokens(1, 10)
    experts = all_experts(model)
    in_blocks = sum(block.weights_per_token for block in model.blocks)
    routers = sum(units.moe.router.weight.numel() for units in experts)
    counted = count_macs(model, tokens)
    assert counted["prefill"].by_part["blocks"] == 10 * (in_blocks + routers)
    assert counted["decode"].by_part["blocks"] == in_blocks + routers
    assert experts[0].moe.weights_per_token == 2 * 3 * 24 * 32
    for units in experts:
        units.apply(torch.arange(6) > 1)
    masked = count_macs(model, tokens)["prefill"]
    shrink(model, {units.name: torch.arange(6) > 1 for units in experts})
    shrunk = count_macs(model, tokens)["prefill"]
    assert masked.dense > masked.nonzero == shrunk.dense == shrunk.nonzero


def test_a_head_lives_if_its_output_has_a_weight(tiny_model):
    attention = tiny_model("llama").blocks[0].attention
    attention.out.weight[:, 8:16] = 0
    assert live_heads(attention) == 3
    attention.out.weight[5, 9] = 1e-9
    assert live_heads(attention) == 4
