"""Rows of queries and keys as units: what belongs to one, and attention that compares by fewer of them."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

import prune_lab
from prune_lab.errors import BadInput
from prune_lab.models.families import FAMILIES
from prune_lab.models.model_units import all_heads, all_keys, all_query_heads, all_values, keys_of
from prune_lab.models.shrink import shrink
from prune_lab.pruning.target import Target
from tests.conftest import ENCODER_CONFIGS

FREE = [name for name, row in FAMILIES.items() if row.free_keys and name not in ENCODER_CONFIGS]


def some_keys(model, share=0.6, seed=0):
    """Keep-masks, of other rows in each head."""
    generator = torch.Generator().manual_seed(seed)
    return {each.name: torch.rand(each.count, generator=generator) < share for each in all_keys(model)}


def masked(model, masks):
    for units in (*all_keys(model), *all_values(model), *all_query_heads(model), *all_heads(model)):
        if units.name in masks:
            units.apply(masks[units.name])
    return model


def places_of(model):
    return [block.attention.key_places for block in model.blocks]


@pytest.mark.parametrize("family", FREE)
def test_a_unit_is_what_queries_and_a_key_are_compared_by(tiny_model, random_tokens, family):
    """Its rows are those of one place of a head, and of the place that positions rotate with it."""
    model, tokens = tiny_model(family), random_tokens()
    attention, units = model.blocks[1].attention, keys_of(model.blocks[1])
    size, group, pairs = attention.head_dim, attention.queries_per_key, FAMILIES[family].free_keys == "pairs"
    assert units.count == attention.kv_heads * size // (2 if pairs else 1)
    keep, number = torch.ones(units.count, dtype=torch.bool), units.count // attention.kv_heads + 1
    keep[number] = False  # the second place of the second head
    rows = [size + 1, size + 1 + size // 2] if pairs else [size + 1]
    before = {linear.name: linear.weight.clone() for linear in model.linears}
    units.apply(keep)
    changed = {
        linear.name: (linear.weight != before[linear.name]).any(1).nonzero().flatten().tolist()
        for linear in model.linears
    }
    query, key, _ = attention.projections
    assert changed.pop(key.name) == rows
    assert changed.pop(query.name) == [row - size + each * size for each in range(group, 2 * group) for row in rows]
    assert not any(changed.values())
    width = key.shape[1] + (key.bias is not None)
    assert units.parameters_each == len(rows) * (1 + group) * width
    assert torch.equal(~units.zero, keep)
    assert model.hf(tokens).logits.isfinite().all()


@pytest.mark.parametrize("family", FREE)
def test_a_shrunk_model_computes_as_a_masked_one_and_opens_again(tiny_model, random_tokens, family, tmp_path):
    tokens, shrunk = random_tokens(), tiny_model(family)
    masks = some_keys(shrunk)
    masks[all_keys(shrunk)[0].name] &= all_keys(shrunk)[0].head > 0  # a head without any weighs all tokens alike
    expected = masked(tiny_model(family), masks).hf(tokens).logits
    assert not torch.allclose(expected, tiny_model(family).hf(tokens).logits, atol=1e-4)
    parameters = sum(parameter.numel() for parameter in shrunk.hf.parameters())
    gone = sum(int((~masks[each.name]).sum()) * each.parameters_each for each in all_keys(shrunk))
    assert shrink(shrunk, masks)["keys_per_block"] == places_of(shrunk)
    assert places_of(shrunk)[0][0] == []
    assert sum(parameter.numel() for parameter in shrunk.hf.parameters()) == parameters - gone
    torch.testing.assert_close(shrunk.hf(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    shrunk.hf.save_pretrained(tmp_path)
    for opened in (prune_lab.load(str(tmp_path)).hf, AutoModelForCausalLM.from_pretrained(tmp_path).eval()):
        assert opened.config.model_type == f"prune_lab_{family}"
        torch.testing.assert_close(opened(tokens).logits, shrunk.hf(tokens).logits, rtol=0, atol=1e-6)
    generated = shrunk.hf.generate(tokens[:1], max_new_tokens=4, do_sample=False, use_cache=True, pad_token_id=0)
    plain = shrunk.hf.generate(tokens[:1], max_new_tokens=4, do_sample=False, use_cache=False, pad_token_id=0)
    assert torch.equal(generated, plain)
    assert torch.equal(copy.deepcopy(shrunk.hf)(tokens).logits, shrunk.hf(tokens).logits)


@pytest.mark.parametrize("family", ["llama", "opt", "bert"])
def test_keys_values_and_heads_go_together_and_one_after_the_other(tiny_model, random_tokens, family):
    tokens, model = random_tokens(), tiny_model(family)
    for step in range(3):
        masks = some_keys(model, 0.8, step)
        values = all_values(model)[step % 2]
        masks[values.name] = torch.arange(values.count) % 5 != step
        heads = all_heads(model)[2 - step]
        masks[heads.name] = torch.arange(heads.count) != step % heads.count
        if step == 2 and family == "llama":
            queries = all_query_heads(model)[1]
            masks[queries.name] = torch.arange(queries.count) % 2 == 0
        expected = masked(copy.deepcopy(model), masks).hf(tokens).logits
        shrink(model, masks)
        torch.testing.assert_close(model.hf(tokens).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "gpt2", "gpt_neox", "olmoe", "qwen3_moe"])
def test_where_they_cannot_go_it_is_said(tiny_model, family):
    with pytest.raises(BadInput, match="no single rows of them can go; use sparsity=values or neurons_values"):
        keys_of(tiny_model(family).blocks[0])


def test_a_folder_with_impossible_places_is_told(tiny_model, tmp_path):
    model = tiny_model("opt")
    shrink(model, {all_keys(model)[0].name: torch.arange(32) > 3})
    model.hf.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    for old, new in (("4,", "99,"), ("4,", "5,")):
        (tmp_path / "config.json").write_text(config.replace(f"        {old}", f"        {new}", 1))
        with pytest.raises(BadInput, match=r"keys_per_block"):
            prune_lab.load(str(tmp_path))


def test_a_block_may_lose_all_its_keys_with_a_head_that_has_no_values(tiny_model, random_tokens, tmp_path):
    """Its other heads look at all tokens alike then; nothing of it is a unit of keys any more."""
    model, tokens = tiny_model("opt"), random_tokens()
    keys, values, count = all_keys(model)[1], all_values(model)[1], all_keys(model)[1].count
    some = {keys.name: torch.arange(count) == 0, values.name: torch.arange(values.count) >= values.count // 4}
    before = masked(copy.deepcopy(model), some).hf(tokens).logits
    shrink(model, some)
    assert [len(each) for each in model.blocks[1].attention.key_places] == [0, 0, 0]
    torch.testing.assert_close(model.hf(tokens).logits, before, rtol=1e-4, atol=1e-4)
    model.hf.save_pretrained(tmp_path)
    again = prune_lab.load(str(tmp_path))
    torch.testing.assert_close(again.hf(tokens).logits, before, rtol=1e-4, atol=1e-4)
    target = Target("keys", 0.5)
    assert [len(target.units_of(block)) for block in again.blocks] == [1, 0, 1]
    assert [each.name for each in all_keys(again)] == [all_keys(model)[0].name, all_keys(model)[1].name]
    target.check(again)
    result = prune_lab.prune(
        again, method="random", sparsity="keys", sparsity__level=0.5, data=tokens, stages=["prune"]
    )
    assert result.metrics["prune/sparsity"] == 0.5


@pytest.mark.parametrize("which", ["query", "key"])
def test_a_pair_whose_biases_tell_positions_apart_is_not_zero(tiny_model, random_tokens, which):
    """Positions rotate biases, too; it is zero once those of the queries or of the keys are."""
    model, tokens = tiny_model("qwen2"), random_tokens()
    units = all_keys(model)[0]
    kept = torch.arange(units.count) != 0
    for number, member in enumerate(units.members):
        stays = member.spread(kept.float())
        member.linear.weight.mul_(stays[:, None])
        member.bias.copy_(torch.where(stays == 0, 3.0 + number, member.bias))

    def without():
        return masked(copy.deepcopy(model), {units.name: kept}).hf(tokens).logits

    assert not bool(units.zero.any())
    assert not torch.allclose(without(), model.hf(tokens).logits)
    member = units.members[which == "key"]
    member.bias.mul_(member.spread(kept.float()))
    assert torch.equal(units.zero, ~kept)
    torch.testing.assert_close(without(), model.hf(tokens).logits)
