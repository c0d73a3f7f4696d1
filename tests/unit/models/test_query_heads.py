"""Heads of queries that go while the keys and values that they share stay."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import prune_lab
from prune_lab.errors import BadInput
from prune_lab.models.model import PrunableModel
from prune_lab.models.model_units import all_query_heads, all_values, heads_of, query_heads_of
from prune_lab.models.shrink import shrink
from prune_lab.pruning.target import Target
from prune_lab.pruning.unit_counts import uniform_counts

SHARING = ["gemma3_text", "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe"]


def three_of_each_key() -> PrunableModel:
    sizes = {"hidden_size": 48, "intermediate_size": 32, "num_attention_heads": 6, "num_key_value_heads": 2}
    return PrunableModel(LlamaForCausalLM(LlamaConfig(vocab_size=16, num_hidden_layers=1, **sizes)))


def masks_of(model: PrunableModel, kept: list[list[int]]) -> dict[str, Tensor]:
    units = all_query_heads(model)
    return {each.name: torch.tensor(keep, dtype=torch.bool) for each, keep in zip(units, kept, strict=True)}


@pytest.mark.parametrize("family", SHARING)
@pytest.mark.parametrize("equal", [True, False], ids=["equal", "unequal"])
def test_masked_and_shrunk_models_agree_and_the_folder_opens(
    tiny_model: Callable[..., PrunableModel],
    random_tokens: Callable[..., Tensor],
    family: str,
    equal: bool,
    tmp_path,
):
    tokens, masked, shrunk = random_tokens(), tiny_model(family), tiny_model(family)
    masks = masks_of(masked, [[0, 1, 1, 0], [1, 0, 1, 0], [0, 1, 0, 1]] if equal else [[0, 1, 1, 0], [1] * 4, [1] * 4])
    for units in all_query_heads(masked):
        units.apply(masks[units.name])
    expected = masked.hf(tokens).logits
    assert not torch.allclose(expected, tiny_model(family).hf(tokens).logits, atol=1e-3)
    keys = [block.attention.projections[1].shape for block in shrunk.blocks]
    counts = shrink(shrunk, masks)
    assert counts["query_heads_per_block"] == ([2, 2, 2] if equal else [2, 4, 4])
    assert [block.attention.projections[1].shape for block in shrunk.blocks] == keys
    torch.testing.assert_close(shrunk.hf(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    shrunk.hf.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(opened(tokens).logits, shrunk.hf(tokens).logits, rtol=0, atol=1e-6)
    # one query for each key is an ordinary folder, whose configuration says so
    assert opened.config.model_type == (family if equal else f"prune_lab_{family}")
    assert (opened.config.num_attention_heads, opened.config.num_key_value_heads) == (2 if equal else 4, 2)
    cached, plain = (
        opened.generate(tokens[:1], max_new_tokens=4, do_sample=False, use_cache=each, pad_token_id=0)
        for each in (True, False)
    )
    assert torch.equal(cached, plain)


def test_unequal_numbers_may_become_equal(
    tiny_model: Callable[..., PrunableModel], random_tokens: Callable[..., Tensor], tmp_path
):
    model, tokens = tiny_model("llama"), random_tokens()
    shrink(model, masks_of(model, [[0, 1, 1, 0], [1] * 4, [1] * 4]))
    model.hf.save_pretrained(tmp_path / "unequal")
    again = prune_lab.load(tmp_path / "unequal")
    assert [each.count for each in all_query_heads(again)] == [4, 4]  # in the first block none share a key
    left = shrink(again, {each.name: torch.tensor([True, False] * 2) for each in all_query_heads(again)})
    assert left["query_heads_per_block"] == [2, 2, 2]
    assert again.hf.config.model_type == "llama"
    again.hf.save_pretrained(tmp_path / "equal")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "equal").eval()
    torch.testing.assert_close(opened(tokens).logits, again.hf(tokens).logits, rtol=0, atol=0)
    assert "query_heads_per_block" not in shrink(again, {})


def test_keys_and_values_may_go_after_them(
    tiny_model: Callable[..., PrunableModel], random_tokens: Callable[..., Tensor], tmp_path
):
    """Blocks of other numbers of queries and of keys; then values, where queries of one key read the same ones."""
    model, tokens = tiny_model("llama"), random_tokens()
    shrink(model, masks_of(model, [[0, 1, 1, 0], [1] * 4, [1] * 4]))
    one_key = heads_of(model.blocks[1])
    shrink(model, {one_key.name: torch.tensor([False, True])})
    assert model.hf.config.heads_per_block == [2, 1, 2]
    assert model.hf.config.query_heads_per_block == [2, 2, 4]
    values = all_values(model)[2]
    keep = torch.arange(values.count) % 3 > 0
    values.apply(keep)
    expected = model.hf(tokens).logits
    shrink(model, {values.name: keep})
    torch.testing.assert_close(model.hf(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    queries = query_heads_of(model.blocks[2])  # whose values differ in number
    keep = torch.tensor([False, True, True, False])
    queries.apply(keep)
    expected = model.hf(tokens).logits
    shrink(model, {queries.name: keep})
    torch.testing.assert_close(model.hf(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    model.hf.save_pretrained(tmp_path)
    torch.testing.assert_close(prune_lab.load(tmp_path).hf(tokens).logits, model.hf(tokens).logits, rtol=0, atol=0)


def test_what_goes_is_counted(tiny_model: Callable[..., PrunableModel]):
    model = tiny_model("qwen2")  # whose queries have biases
    units, before = query_heads_of(model.blocks[0]), sum(each.numel() for each in model.hf.parameters())
    assert (units.count, units.at_once, units.least) == (4, 2, 2)
    shrink(model, {units.name: torch.tensor([True, False, True, False])})
    assert before - sum(each.numel() for each in model.hf.parameters()) == 2 * units.parameters_each


@given(st.lists(st.booleans(), min_size=6, max_size=6))
@settings(max_examples=30, deadline=None)
def test_zeros_count_as_many_for_every_key(zero: list[bool]):
    units = query_heads_of(three_of_each_key().blocks[0])
    units.apply(~torch.tensor(zero))
    found = units.zero
    assert units.is_even(~found)
    assert not bool((found & ~torch.tensor(zero)).any())
    assert int(found.count_nonzero()) == 2 * min(sum(zero[:3]), sum(zero[3:]))


def test_blocks_that_have_none_to_lose_are_passed_over(tiny_model: Callable[..., PrunableModel]):
    model = tiny_model("llama")
    shrink(model, masks_of(model, [[1] * 4, [0, 1, 1, 0], [1] * 4]))
    for kind, number in (("query_heads", 2), ("neurons_query_heads", 5)):
        target = Target(kind, 0.5)
        target.check(model)
        assert len(target.units(model)) == number
        assert sum(uniform_counts(target.units(model), target).values()) == 4 + (number - 2) * 24
    with pytest.raises(BadInput, match=r"model\.layers\.1 has a key for each query"):
        Target("query_heads", 0.5, layers=[1, 2]).check(model)


@pytest.mark.parametrize("gone", ["blocks", "query_heads"])
def test_zeros_of_whole_layers_are_taken_out(tiny_model: Callable[..., PrunableModel], gone: str):
    """Of an attention without any query that is not zero, one of each key stays."""
    model = tiny_model("llama")
    units = Target(gone, 0.5).units(model)
    if gone == "blocks":
        units[0].apply(torch.tensor([True, False, True]))
    else:
        units[1].apply(torch.zeros(4, dtype=torch.bool))
    result = prune_lab.shrink(model.hf)
    assert [block.attention.heads for block in result.prunable.blocks] == ([4, 4] if gone == "blocks" else [4, 2, 4])


def test_uneven_masks_and_keys_of_one_query_are_refused(tiny_model: Callable[..., PrunableModel]):
    model = tiny_model("llama")
    name = query_heads_of(model.blocks[0]).name
    with pytest.raises(BadInput, match=rf"{name}: the mask keeps more queries of one key than of another"):
        shrink(model, {name: torch.tensor([True, True, True, False])})
    with pytest.raises(BadInput, match=r"has a key for each query.*use sparsity=heads"):
        query_heads_of(tiny_model("opt").blocks[0])
    with pytest.raises(BadInput, match="normalises queries and keys of all its heads together"):
        query_heads_of(tiny_model("olmoe").blocks[0])
    assert all_query_heads(tiny_model("gpt2")) == all_query_heads(tiny_model("olmoe")) == []
