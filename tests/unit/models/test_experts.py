"""Families with experts: what is read of them, and what becomes of experts that are removed."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import prune_lab
from prune_lab.errors import BadInput
from prune_lab.models.experts import ExpertLinear, moe_of
from prune_lab.models.model_units import (
    all_experts,
    all_heads,
    all_neurons,
    blocks_of,
    experts_of,
    heads_of,
    neurons_of,
)
from prune_lab.models.shrink import is_unequal, mark_passed_over, shrink


def test_every_matrix_of_a_block_but_the_router_is_covered_once(tiny_model, moe_family):
    for block in tiny_model(moe_family).blocks:
        parameters = dict(block.module.named_parameters())
        matrices = sum(each.numel() for name, each in parameters.items() if each.ndim >= 2 and "mlp.gate.w" not in name)
        assert sum(linear.weight.numel() for linear in block.linears) == matrices
        assert len({linear.name for linear in block.linears}) == len(block.linears)
        assert sorted(each.name for step in block.steps for each in step) == sorted(each.name for each in block.linears)
        for linear in block.linears:
            linear.write(torch.ones(linear.shape))
        assert all((each == 1).all() for name, each in parameters.items() if "proj" in name)


def test_an_expert_computes_from_its_views_what_the_model_computes(tiny_model, moe_family):
    moe = moe_of(tiny_model(moe_family).blocks[0])
    rows = torch.randn(5, moe.router.shape[1])
    for number in range(len(moe.experts)):
        chosen = torch.full((5, 1), number)
        whole = moe.fused(rows, chosen, torch.full((5, 1), 0.5))
        torch.testing.assert_close(0.5 * moe.output(number, rows), whole)


def test_blocks_may_have_one_network_beside_others_with_experts(tiny_model):
    model = tiny_model("qwen3_moe")
    assert [moe_of(block) is None for block in model.blocks] == [False, True, False]
    assert [units.name for units in all_neurons(model)] == ["model.layers.1.neurons"]
    assert [units.name for units in all_experts(model)] == ["model.layers.0.experts", "model.layers.2.experts"]
    with pytest.raises(BadInput, match=r"model\.layers\.0 has a mixture of experts, and not one"):
        neurons_of(model.blocks[0])
    with pytest.raises(BadInput, match=r"model\.layers\.1 has no experts"):
        experts_of(model.blocks[1])


def test_heads_that_are_normalised_together_stay(tiny_model):
    model = tiny_model("olmoe")
    assert all_heads(model) == []
    with pytest.raises(BadInput, match=r"model\.layers\.0 normalises queries and keys of all its heads together"):
        heads_of(model.blocks[0])


def masks_that_keep(model, counts):
    """Keep-masks of experts, the last ones of some block."""
    units = all_experts(model)
    return {each.name: torch.arange(each.count) >= each.count - counts[at] for at, each in enumerate(units)}


def masked(model, masks):
    for units in all_experts(model):
        units.apply(masks[units.name])
    return model


@pytest.mark.parametrize("counts", [(4, 4, 4), (2, 5, 3)], ids=str)
def test_masked_and_shrunk_experts_compute_the_same_and_the_folder_opens(
    tiny_model, random_tokens, moe_family, tmp_path, counts
):
    tokens, model, shrunk = random_tokens(), tiny_model(moe_family), tiny_model(moe_family)
    masks = masks_that_keep(model, counts)
    counts = [int(mask.count_nonzero()) for mask in masks.values()]
    dense = model.hf(tokens).logits
    expected = masked(model, masks).hf(tokens).logits
    assert not torch.allclose(expected, dense, atol=1e-2)
    assert all(torch.equal(units.zero, ~masks[units.name]) for units in all_experts(model))
    assert shrink(shrunk, masks)["experts_per_block"] == counts
    torch.testing.assert_close(shrunk.hf(tokens).logits, expected, rtol=1e-5, atol=1e-5)
    shrunk.hf.save_pretrained(tmp_path)
    equal = len(set(counts)) == 1
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["model_type"] == (moe_family if equal else f"prune_lab_{moe_family}")
    assert raw.get("experts_per_block") == (None if equal else counts)
    assert AutoConfig.from_pretrained(tmp_path).num_experts == (counts[0] if equal else 6)
    assert shrunk.hf.num_experts == (counts[0] if equal else 6)  # what the loss that balances routers counts on
    for loaded in (AutoModelForCausalLM.from_pretrained(tmp_path).eval(), prune_lab.load(tmp_path).hf):
        torch.testing.assert_close(loaded(tokens).logits, shrunk.hf(tokens).logits, rtol=0, atol=1e-6)


def test_removed_experts_stay_removed_in_copies_and_in_folders(tiny_model, random_tokens, moe_family, tmp_path):
    """A folder whose router is to pass over some experts is no ordinary one of its family."""
    tokens, model = random_tokens(), tiny_model(moe_family)
    masks = masks_that_keep(model, (3, 4, 5))
    expected = masked(model, masks).hf(tokens).logits
    torch.testing.assert_close(copy.deepcopy(model.hf)(tokens).logits, expected, rtol=0, atol=1e-6)
    mark_passed_over(model)
    model.hf.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == f"prune_lab_{moe_family}"
    by_transformers = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(by_transformers(tokens).logits, expected, rtol=0, atol=1e-6)
    loaded = prune_lab.load(str(tmp_path))
    torch.testing.assert_close(loaded.hf(tokens).logits, expected, rtol=0, atol=1e-6)
    shrink(loaded, {units.name: ~units.zero for units in all_experts(loaded)})
    torch.testing.assert_close(loaded.hf(tokens).logits, expected, rtol=1e-5, atol=1e-5)
    assert not is_unequal(loaded.hf.config) or len({units.count for units in all_experts(loaded)}) > 1


@pytest.mark.parametrize("counts", [(3, 4, 5), (4, 4, 4)], ids=str)
def test_a_model_from_files_is_saved_in_the_names_that_its_class_reads(
    tiny_model, random_tokens, moe_family, tmp_path, counts
):
    """Files of a family have the tensors of single experts, and those of our classes all of a block in one."""
    tokens = random_tokens()
    tiny_model(moe_family).hf.save_pretrained(tmp_path / "dense")
    model = prune_lab.load(tmp_path / "dense")
    masks = masks_that_keep(model, counts)
    expected = masked(model, masks).hf(tokens).logits
    mark_passed_over(model)
    model.hf.save_pretrained(tmp_path / "masked")
    shrink(model, masks)
    model.hf.save_pretrained(tmp_path / "shrunk")
    again = prune_lab.load(tmp_path / "masked")
    shrink(again, masks)  # from our class to the family's, where the counts are equal
    again.hf.save_pretrained(tmp_path / "again")
    for name in ("masked", "shrunk", "again"):
        opened = AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()
        torch.testing.assert_close(opened(tokens).logits, expected, rtol=1e-5, atol=1e-5)
        of_one = any(".experts.0." in key for key in load_file(tmp_path / name / "model.safetensors"))
        assert of_one == (name != "masked" and len(set(counts)) == 1)


def test_a_router_row_of_zeros_is_a_row_like_any_other_where_nothing_was_removed(tiny_model, random_tokens):
    model, plain = tiny_model("mixtral"), tiny_model("mixtral").hf
    for hf in (model.hf, plain):
        hf.model.layers[0].mlp.gate.weight.data[0] = 0
    assert len(model.blocks) == 3
    torch.testing.assert_close(model.hf(random_tokens()).logits, plain(random_tokens()).logits, rtol=0, atol=0)


def test_fewer_experts_than_a_token_goes_to_are_refused(tiny_model):
    model = tiny_model("mixtral")
    with pytest.raises(BadInput, match=r"model\.layers\.0\.experts: the mask keeps 1 of 6 experts.*at least 2 must"):
        shrink(model, masks_that_keep(model, (1, 1, 1)))


@pytest.mark.parametrize("kept", [[0, 1], [1, 2], [1]], ids=str)
def test_whole_blocks_go(tiny_model, random_tokens, moe_family, tmp_path, kept):
    tokens, model, shrunk = random_tokens(), tiny_model(moe_family), tiny_model(moe_family)
    keep = torch.tensor([index in kept for index in range(3)])
    blocks_of(model).apply(keep)
    shrink(shrunk, {blocks_of(shrunk).name: keep})
    torch.testing.assert_close(shrunk.hf(tokens).logits, model.hf(tokens).logits, rtol=1e-5, atol=1e-5)
    shrunk.hf.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(tokens).logits, shrunk.hf(tokens).logits, rtol=0, atol=1e-6)


def test_single_experts_are_parts_of_one_parameter(tiny_model):
    block = tiny_model("mixtral").blocks[0]
    linear = next(each for each in block.linears if each.name == "model.layers.0.mlp.experts.3.up_proj")
    assert isinstance(linear, ExpertLinear)
    assert linear.shape == (24, 32)
    before = linear.parameter.detach().clone()
    linear.write(torch.zeros(24, 32))
    before[3, 24:] = 0
    assert torch.equal(linear.parameter, before)
