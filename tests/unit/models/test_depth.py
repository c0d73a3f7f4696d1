"""Blocks that are left out: as zeros, and taken out."""

from copy import deepcopy

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, OPTConfig, Qwen2Config

import prune_lab
from prune_lab.errors import BadInput
from prune_lab.models.model import PrunableModel
from prune_lab.models.model_units import all_heads, all_neurons, blocks_of, removable, sub_blocks_of
from prune_lab.models.shrink import shrink

GONE = [[0], [1], [2], [0, 2], [0, 1]]


def with_biases(model: PrunableModel) -> PrunableModel:
    """Biases and norms are zeros and ones in a fresh model, which would hide that they are forgotten."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.hf.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def keep_without(gone, count=3):
    return torch.ones(count, dtype=torch.bool).index_fill(0, torch.tensor(gone), False)


def parameters(model):
    return sum(parameter.numel() for parameter in model.hf.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_block_of_zeros_is_the_model_without_it_bit_for_bit(tiny_model, random_tokens, family, dtype):
    tokens = random_tokens()
    for gone in GONE:
        masked, shrunk = (with_biases(tiny_model(family, dtype)) for _ in range(2))
        dense, before = masked.hf(tokens).logits, parameters(shrunk)
        units, keep = blocks_of(masked), keep_without(gone)
        assert not units.zero.any()
        units.apply(keep)
        assert torch.equal(units.zero, ~keep)
        left = shrink(shrunk, {units.name: keep})
        assert left["kept_blocks"] == keep.nonzero().flatten().tolist()
        assert len(shrunk.blocks) == len(left["neurons_per_block"]) == 3 - len(gone)
        assert parameters(shrunk) < before
        assert torch.equal(masked.hf(tokens).logits, shrunk.hf(tokens).logits)
        assert not torch.allclose(masked.hf(tokens).logits, dense, atol=1e-2)


def test_without_its_bias_a_block_is_zero_and_with_it_not(tiny_model):
    model = with_biases(tiny_model("opt"))
    blocks_of(model).apply(keep_without([1]))
    model.blocks[1].mlp.down.module.bias.data[3] = 1e-3
    assert not blocks_of(model).zero.any()
    assert sub_blocks_of(model).zero.tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("gone", [[1], [0, 2]], ids=str)
def test_the_folder_is_an_ordinary_one_and_generates_with_a_cache(tiny_model, random_tokens, family, tmp_path, gone):
    tokens, model = random_tokens(), with_biases(tiny_model(family))
    shrink(model, {blocks_of(model).name: keep_without(gone)})
    model.hf.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.config.num_hidden_layers == 3 - len(gone)
    assert torch.equal(loaded(tokens).logits, model.hf(tokens).logits)
    for hf in (model.hf, loaded):
        cached, plain = (
            hf.generate(tokens[:1], max_new_tokens=6, do_sample=False, use_cache=use_cache, pad_token_id=0)
            for use_cache in (True, False)
        )
        assert torch.equal(cached, plain)


def test_neurons_and_heads_go_with_blocks(tiny_model, random_tokens, family, tmp_path):
    """Of the block that goes, too; the widths of those that stay are equal, so that the folder is an ordinary one."""
    tokens = random_tokens()
    masked, shrunk = (with_biases(tiny_model(family)) for _ in range(2))
    widths = dict(zip((each.name for each in all_neurons(masked)), (20, 7, 20), strict=True))
    masks = {each.name: torch.arange(each.count) < widths[each.name] for each in all_neurons(masked)}
    masks[all_heads(masked)[1].name] = torch.arange(all_heads(masked)[1].count) < 1
    masks[blocks_of(masked).name] = keep_without([1])
    for units in removable(masked):
        if units.name in masks:
            units.apply(masks[units.name])
    assert shrink(shrunk, masks)["neurons_per_block"] == [20, 20]
    torch.testing.assert_close(shrunk.hf(tokens).logits, masked.hf(tokens).logits, rtol=1e-4, atol=1e-4)
    shrunk.hf.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(tokens).logits, shrunk.hf(tokens).logits)


def test_of_blocks_of_unequal_widths_those_that_stay_are_told(tiny_model, random_tokens, tmp_path):
    model, tokens = with_biases(tiny_model("llama")), random_tokens()
    widths = (48, 7, 20)
    masks = {each.name: torch.arange(each.count) < n for each, n in zip(all_neurons(model), widths, strict=True)}
    shrink(model, masks)
    assert shrink(model, {blocks_of(model).name: keep_without([0])})["neurons_per_block"] == [7, 20]
    model.hf.save_pretrained(tmp_path)
    loaded = prune_lab.load(str(tmp_path))
    assert torch.equal(loaded.hf(tokens).logits, model.hf(tokens).logits)


def test_what_the_configuration_says_of_each_block_goes_with_it(tiny_model):
    gemma, neo = tiny_model("gemma3_text"), tiny_model("gpt_neo")
    for model in (gemma, neo):
        shrink(model, {blocks_of(model).name: keep_without([0])})
        numbers = [
            {getattr(module, name) for module in block.module.modules() for name in ("layer_idx", "layer_id")
             if isinstance(getattr(module, name, None), int)}
            for block in model.blocks
        ]  # fmt: skip
        assert numbers == [{0}, {1}]
    assert gemma.hf.config.layer_types == ["full_attention", "sliding_attention"]
    assert neo.hf.config.attention_types == [[["local"], 1], [["global"], 1]]
    assert neo.hf.config.attention_layers == ["local", "global"]


def test_the_first_blocks_of_qwen2_that_see_everything_are_counted_again(random_tokens, tmp_path):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, use_sliding_window=True, sliding_window=4, max_window_layers=2,
    )  # fmt: skip
    model, tokens = PrunableModel(AutoModelForCausalLM.from_config(config)), random_tokens()
    keep = keep_without([1], 4)
    masked = PrunableModel(AutoModelForCausalLM.from_config(deepcopy(config)))  # shrinking changes it
    masked.hf.load_state_dict(model.hf.state_dict())
    blocks_of(masked).apply(keep)
    shrink(model, {blocks_of(model).name: keep})
    assert (model.hf.config.max_window_layers, model.hf.config.layer_types) == (
        1, ["full_attention", "sliding_attention", "sliding_attention"]
    )  # fmt: skip
    assert torch.equal(model.hf(tokens).logits, masked.hf(tokens).logits)
    model.hf.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(tokens).logits, model.hf(tokens).logits)


def test_sub_blocks_of_one_block_are_the_block(tiny_model, random_tokens, family):
    """Unit 2i is attention, 2i + 1 the feed-forward network; halves that go alone stay as zeros."""
    tokens = random_tokens()
    masked, halves = (with_biases(tiny_model(family)) for _ in range(2))
    blocks_of(masked).apply(keep_without([1]))
    units = sub_blocks_of(halves)
    units.apply(keep_without([2, 3], 6))
    assert torch.equal(halves.hf(tokens).logits, masked.hf(tokens).logits)
    units.apply(keep_without([4], 6))
    assert not halves.blocks[2].attention.out.weight.any()
    assert halves.blocks[2].mlp.down.weight.any()
    expected = halves.hf(tokens).logits
    assert shrink(halves, {units.name: keep_without([2, 3, 4], 6)})["kept_blocks"] == [0, 2]
    assert torch.equal(halves.hf(tokens).logits, expected)


def test_masks_that_leave_no_block_are_refused(tiny_model):
    model = tiny_model("llama")
    with pytest.raises(BadInput, match="the mask keeps 0 of 3 blocks"):
        shrink(model, {blocks_of(model).name: torch.zeros(3, dtype=torch.bool)})
    both = {
        blocks_of(model).name: keep_without([0, 1]),
        sub_blocks_of(model).name: keep_without([4, 5], 6),
    }
    with pytest.raises(BadInput, match="keep no block at all"):
        shrink(model, both)


@pytest.mark.parametrize(
    "config",
    [
        OPTConfig(vocab_size=64, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
                  word_embed_proj_dim=32, do_layer_norm_before=False),
        GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, scale_attn_by_inverse_layer_idx=True),
    ],
    ids=["opt", "gpt2"],
)  # fmt: skip
def test_where_an_empty_block_is_no_identity_none_can_be_taken_out(config):
    model = PrunableModel(AutoModelForCausalLM.from_config(config))
    assert not {each.kind for each in removable(model)} & {"blocks", "sub_blocks"}
