"""Values as units: what belongs to one, and attention whose heads have fewer values than keys."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

import prune_lab
from prune_lab.errors import BadInput
from prune_lab.evaluation.flops import live_heads
from prune_lab.models.model_units import all_heads, all_neurons, all_values, blocks_of, heads_of, values_of
from prune_lab.models.residual import why_stream_stays
from prune_lab.models.shrink import shrink
from prune_lab.pruning.latency.measure import shapes_of
from prune_lab.pruning.methods.low_rank import LowRank
from prune_lab.pruning.methods.rotated import Rotated
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.target import Target
from prune_lab.training.lora import Lora, trained_beside
from tests.conftest import MOE_CONFIGS

ALL = pytest.mark.parametrize("family", ["gemma3_text", "gpt2", "gpt_neo", "gpt_neox", "llama", "mistral", "opt",
                                         "qwen2", "qwen3", *sorted(MOE_CONFIGS)])  # fmt: skip


def some_values(model, share=0.6, seed=0):
    """Keep-masks, of another number of values in each head."""
    generator = torch.Generator().manual_seed(seed)
    return {each.name: torch.rand(each.count, generator=generator) < share for each in all_values(model)}


def masked(model, masks):
    for units in (*all_values(model), *all_heads(model), *all_neurons(model)):
        if units.name in masks:
            units.apply(masks[units.name])
    return model


def per_head(model):
    return [block.attention.values for block in model.blocks]


@ALL
def test_a_value_is_what_one_place_of_a_head_hands_on(tiny_model, random_tokens, family):
    """Its output column sees nothing else: with the value set to zero by hand in the attention, outputs agree."""
    model, tokens = tiny_model(family), random_tokens()
    attention, units = model.blocks[0].attention, values_of(model.blocks[0])
    head, place = attention.kv_heads - 1, 2
    keep = torch.ones(units.count, dtype=torch.bool)
    keep[head * attention.head_dim + place] = False
    columns = torch.zeros(attention.out.shape[1], dtype=torch.bool)
    group = attention.heads // attention.kv_heads
    for query in range(head * group, (head + 1) * group):
        columns[query * attention.head_dim + place] = True

    def silence(_module, inputs):
        return (inputs[0].masked_fill(columns, 0),)

    hook = attention.out.module.register_forward_pre_hook(silence)
    expected = model.hf(tokens).logits
    hook.remove()
    before = {linear.name: linear.weight.clone() for linear in model.linears}
    units.apply(keep)
    torch.testing.assert_close(model.hf(tokens).logits, expected)
    changed = {linear.name: int((linear.weight != before[linear.name]).any(1).sum()) for linear in attention.linears}
    width = attention.out.shape[0]
    assert changed.pop(attention.out.name) == width and changed.pop(attention.projections[-1].name) == 1
    assert set(changed.values()) <= {0}
    biases = int(attention.projections[-1].bias is not None)
    assert units.parameters_each == width * (1 + group) + biases
    assert torch.equal(~units.zero, keep)


@ALL
def test_a_shrunk_model_computes_as_a_masked_one_and_opens_again(tiny_model, random_tokens, family, tmp_path):
    tokens, shrunk = random_tokens(), tiny_model(family)
    masks = some_values(shrunk)
    expected = masked(tiny_model(family), masks).hf(tokens).logits
    assert not torch.allclose(expected, tiny_model(family).hf(tokens).logits, atol=1e-3)
    parameters = sum(parameter.numel() for parameter in shrunk.hf.parameters())
    gone = sum(int((~masks[each.name]).sum()) * each.parameters_each for each in all_values(shrunk))
    counts = [each.per_head(masks[each.name]).tolist() for each in all_values(shrunk)]
    assert min(map(min, counts)) > 0
    assert shrink(shrunk, masks)["values_per_block"] == per_head(shrunk) == counts
    assert sum(parameter.numel() for parameter in shrunk.hf.parameters()) == parameters - gone
    torch.testing.assert_close(shrunk.hf(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    shrunk.hf.save_pretrained(tmp_path)
    for opened in (prune_lab.load(str(tmp_path)).hf, AutoModelForCausalLM.from_pretrained(tmp_path).eval()):
        assert opened.config.model_type == f"prune_lab_{family}"
        torch.testing.assert_close(opened(tokens).logits, shrunk.hf(tokens).logits, rtol=0, atol=1e-6)
    generated = shrunk.hf.generate(tokens[:1], max_new_tokens=4, do_sample=False, use_cache=True, pad_token_id=0)
    plain = shrunk.hf.generate(tokens[:1], max_new_tokens=4, do_sample=False, use_cache=False, pad_token_id=0)
    assert torch.equal(generated, plain)
    twin = copy.deepcopy(shrunk.hf)
    assert torch.equal(twin(tokens).logits, shrunk.hf(tokens).logits)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "opt"])
def test_heads_values_neurons_and_blocks_go_one_after_the_other(tiny_model, random_tokens, family, tmp_path):
    """What is read of a narrow attention is right: it can be pruned further, in all ways, and opens again."""
    tokens, model, twin = random_tokens(), tiny_model(family), tiny_model(family)
    for step in range(3):
        masks = some_values(model, 0.8, seed=step)
        heads = heads_of(model.blocks[step % 2])
        if heads.count > 1:
            masks[heads.name] = torch.arange(heads.count) != step % heads.count
        masks[all_neurons(model)[0].name] = torch.arange(all_neurons(model)[0].count) > 2
        twin = masked(copy.deepcopy(model), masks)
        expected = twin.hf(tokens).logits
        shrink(model, masks)
        torch.testing.assert_close(model.hf(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    before = per_head(model)
    masks = {blocks_of(model).name: torch.tensor([False, True, True])}
    expected = masked(model, {}).hf(tokens).logits
    shrink(model, masks)
    assert per_head(model) == before[1:] == model.hf.config.values_per_block
    assert not torch.allclose(model.hf(tokens).logits, expected)
    model.hf.save_pretrained(tmp_path)
    opened = prune_lab.load(str(tmp_path))
    assert per_head(opened) == before[1:]
    torch.testing.assert_close(opened.hf(tokens).logits, model.hf(tokens).logits, rtol=0, atol=1e-6)


@ALL
def test_a_head_without_values_goes(tiny_model, random_tokens, family):
    tokens, model = random_tokens(), tiny_model(family)
    units = all_values(model)
    masks = {units[0].name: units[0].head > 0, units[1].name: torch.arange(units[1].count) < 3}
    expected = masked(tiny_model(family), masks).hf(tokens).logits
    heads = [block.attention.kv_heads for block in model.blocks]
    shrink(model, masks)
    torch.testing.assert_close(model.hf(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    size = model.blocks[2].attention.head_dim
    if model.blocks[0].attention.joint_norm:  # whose heads cannot go
        assert per_head(model)[:2] == [[0] + [size] * (heads[0] - 1), [3] + [0] * (heads[1] - 1)]
    else:
        assert per_head(model) == [[size] * (heads[0] - 1), [3], [size] * heads[2]]
    live = [heads[0] - 1, 1, heads[2]]
    group = model.blocks[2].attention.heads // heads[2]
    assert [live_heads(block.attention) for block in model.blocks] == [group * each for each in live]


def test_a_block_keeps_one_value(tiny_model):
    model = tiny_model("opt")
    name = all_values(model)[0].name
    with pytest.raises(BadInput, match=f"{name}: the mask keeps 0 of 32 values"):
        shrink(model, {name: torch.zeros(32, dtype=torch.bool)})
    assert not any(block.attention.is_narrow for block in model.blocks)


def test_a_folder_with_impossible_values_is_told(tiny_model, tmp_path):
    model = tiny_model("opt")
    shrink(model, {all_values(model)[0].name: torch.arange(32) > 3})
    model.hf.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    for old, new in (("4,", "99,"), ("4,", "3,")):
        (tmp_path / "config.json").write_text(config.replace(f"      {old}", f"      {new}", 1))
        with pytest.raises(BadInput, match=r"values_per_block|of another shape than config\.json says"):
            prune_lab.load(str(tmp_path))


def test_what_cannot_be_done_with_narrow_heads_says_so(tiny_model):
    model = tiny_model("llama")
    shrink(model, {all_values(model)[1].name: torch.arange(16) > 3})
    assert why_stream_stays(model) == "has heads that have lost values, or rows of queries and keys"
    with pytest.raises(BadInput, match=r"latency tables do not know them; ask for a sparsity\.level"):
        shapes_of(model)
    with pytest.raises(BadInput, match="use finetune=sparse_lora or full"), trained_beside(model, Lora(), {}, 0):
        pass
    target = Target("unstructured", 0.5)
    for residual in (True, False):
        with pytest.raises(BadInput, match=r"lost values.*rotate before the stage shrink"):
            Rotated(SparseGPT(), residual=residual).check_model(model, target)
    with pytest.raises(BadInput, match="merge=true"):
        LowRank(SparseGPT(), share=0.2).check_model(model, target)
    LowRank(SparseGPT(), share=0.2, merge=True).check_model(model, target)


def test_what_an_evaluation_has_looked_up_serves_a_training(tiny_model, random_tokens):
    model, tokens = tiny_model("llama"), random_tokens()
    shrink(model, some_values(model))
    with torch.inference_mode():
        model.hf(tokens)
    model.hf.requires_grad_(True)
    model.hf(tokens, labels=tokens).loss.backward()
    before = model.hf(tokens).logits.detach()
    shrink(model, {all_values(model)[0].name: torch.arange(all_values(model)[0].count) != 1})
    with torch.no_grad():
        assert not torch.equal(model.hf(tokens).logits, before)  # other places now
