import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import prune_lab
from prune_lab.errors import BadInput
from prune_lab.models.families import family_of
from prune_lab.models.model import PrunableModel
from prune_lab.models.model_units import all_heads, all_neurons, blocks_of
from prune_lab.models.shrink import shrink
from prune_lab.pruning.masks import Masks


def random_masks(model, kept):
    """Keep-masks that leave ``kept[i]`` neurons of block i."""
    masks = Masks()
    for index, (units, width) in enumerate(zip(all_neurons(model), kept, strict=True)):
        order = torch.randperm(units.count, generator=torch.Generator().manual_seed(index))
        masks[units.name] = torch.zeros(units.count, dtype=torch.bool).index_fill(0, order[:width], True)
    return masks


def masked_and_shrunk(tiny_model, family, kept, tokens):
    masked, shrunk = tiny_model(family), tiny_model(family)
    masks = random_masks(masked, kept)
    for units in all_neurons(masked):
        units.apply(masks[units.name])
    assert shrink(shrunk, masks)["neurons_per_block"] == list(kept)
    expected = masked.hf(tokens).logits
    assert not torch.allclose(expected, tiny_model(family).hf(tokens).logits, atol=1e-3)
    return shrunk, expected


def test_shrunk_and_masked_models_agree_and_equal_widths_are_ordinary_folders(
    tiny_model, random_tokens, family, tmp_path
):
    tokens = random_tokens()
    shrunk, expected = masked_and_shrunk(tiny_model, family, (20, 20, 20), tokens)
    torch.testing.assert_close(shrunk.hf(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    shrunk.hf.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(tokens).logits, shrunk.hf(tokens).logits, rtol=0, atol=0)


def test_unequal_widths_are_opened_again_and_may_become_equal(tiny_model, random_tokens, family, tmp_path):
    tokens = random_tokens()
    shrunk, expected = masked_and_shrunk(tiny_model, family, (20, 1, 31), tokens)
    torch.testing.assert_close(shrunk.hf(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    shrunk.hf.save_pretrained(tmp_path)
    loaded = prune_lab.load(str(tmp_path))
    torch.testing.assert_close(loaded.hf(tokens).logits, shrunk.hf(tokens).logits, rtol=0, atol=0)
    assert [units.count for units in all_neurons(loaded)] == [20, 1, 31]
    assert loaded.hf.config.model_type == f"prune_lab_{family}"
    left = shrink(loaded, random_masks(loaded, (1, 1, 1)))
    assert left["neurons_per_block"] == [1, 1, 1]
    loaded.hf.save_pretrained(tmp_path / "equal")  # an ordinary folder, in which nothing speaks of prune_lab
    assert "prune_lab" not in (tmp_path / "equal/config.json").read_text().lower().replace(str(tmp_path), "")
    assert not list((tmp_path / "equal").glob("*.py"))
    ordinary = AutoModelForCausalLM.from_pretrained(tmp_path / "equal").eval()
    assert type(ordinary) is type(tiny_model(family).hf) is type(loaded.hf)
    torch.testing.assert_close(ordinary(tokens).logits, loaded.hf(tokens).logits, rtol=0, atol=0)


@pytest.mark.parametrize("kept", [(1, 1, 1), (2, 1, 2)], ids=str)
def test_heads_are_removed_and_the_folder_opens(tiny_model, random_tokens, family, tmp_path, kept):
    """Equal numbers of heads are an ordinary folder where the family says how large a head is."""
    tokens = random_tokens()
    masked, shrunk = tiny_model(family), tiny_model(family)
    some = zip(all_heads(masked), kept, strict=True)
    masks = Masks({heads.name: torch.arange(heads.count) >= heads.count - n for heads, n in some})
    for heads in all_heads(masked):
        heads.apply(masks[heads.name])
    expected = masked.hf(tokens).logits
    assert not torch.allclose(expected, tiny_model(family).hf(tokens).logits, atol=1e-3)
    before = sum(parameter.numel() for parameter in shrunk.hf.parameters())
    assert shrink(shrunk, masks)["heads_per_block"] == list(kept)
    assert sum(parameter.numel() for parameter in shrunk.hf.parameters()) < before
    torch.testing.assert_close(shrunk.hf(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    shrunk.hf.save_pretrained(tmp_path)
    loaded = prune_lab.load(str(tmp_path))
    assert [heads.count for heads in all_heads(loaded)] == list(kept)
    torch.testing.assert_close(loaded.hf(tokens).logits, shrunk.hf(tokens).logits, rtol=0, atol=0)
    ordinary = len(set(kept)) == 1 and family_of(family).head_dim is not None
    assert loaded.hf.config.model_type == (family if ordinary else f"prune_lab_{family}")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(opened(tokens).logits, shrunk.hf(tokens).logits, rtol=0, atol=0)
    generated = loaded.hf.generate(tokens[:1], max_new_tokens=4, do_sample=False, use_cache=True, pad_token_id=0)
    plain = loaded.hf.generate(tokens[:1], max_new_tokens=4, do_sample=False, use_cache=False, pad_token_id=0)
    assert torch.equal(generated, plain)


def test_neurons_and_heads_of_unequal_numbers_go_together(tiny_model, random_tokens, tmp_path):
    tokens, model = random_tokens(), tiny_model("opt")
    masks = dict(random_masks(model, (20, 1, 31))) | {all_heads(model)[1].name: torch.tensor([True, False, True, True])}
    shrink(model, masks)
    model.hf.save_pretrained(tmp_path)
    loaded = prune_lab.load(str(tmp_path))
    torch.testing.assert_close(loaded.hf(tokens).logits, model.hf(tokens).logits, rtol=0, atol=0)
    assert [heads.count for heads in all_heads(loaded)] == [4, 3, 4]


def test_masks_that_do_not_fit_are_refused(tiny_model):
    model = tiny_model("opt")
    name = all_neurons(model)[1].name
    for mask in (torch.zeros(64, dtype=torch.bool), torch.ones(10, dtype=torch.bool)):
        with pytest.raises(BadInput, match=f"{name}: the mask keeps"):
            shrink(model, {name: mask})


def test_a_damaged_folder_is_told(tiny_model, tmp_path):
    model = tiny_model("opt")
    shrink(model, random_masks(model, (20, 1, 31)))
    model.hf.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace("20,", "21,", 1))
    with pytest.raises(BadInput, match=r"of another shape than config\.json says: .*fc1\.bias \(\(20,\), and \(21,\)"):
        prune_lab.load(str(tmp_path))


@pytest.mark.parametrize(("heads", "removed", "ordinary"), [(9, 1, True), (8, 1, False), (8, 2, True)])
def test_a_number_of_heads_that_the_family_does_not_take_is_a_folder_of_our_own(
    tmp_path, random_tokens, heads, removed, ordinary
):
    """LLaMA's configuration wants the width, 72 or 64, to be a multiple of the heads: 6, 6 and 4 of them are left."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=8 * heads, intermediate_size=48, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=heads // (3 if heads == 9 else 2), max_position_embeddings=64, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = PrunableModel(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval())
    shrink(model, {each.name: torch.arange(each.count) >= removed for each in all_heads(model)})
    tokens, shared = random_tokens(), model.hf.lm_head.weight is model.hf.get_input_embeddings().weight
    model.hf.save_pretrained(tmp_path)
    loaded = prune_lab.load(str(tmp_path)).hf
    assert shared and loaded.lm_head.weight is loaded.get_input_embeddings().weight
    torch.testing.assert_close(loaded(tokens).logits, model.hf(tokens).logits, rtol=0, atol=0)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert opened.config.model_type == ("llama" if ordinary else "prune_lab_llama")
    torch.testing.assert_close(opened(tokens).logits, loaded(tokens).logits, rtol=0, atol=0)


def test_neurons_stay_as_zeros_up_to_a_multiple(tiny_model, random_tokens, family):
    """Of 48 or 64 (GPT-2: 128) neurons 20, 1 and 31 are kept, and 24, 8 and 32 stay."""
    tokens, kept = random_tokens(), (20, 1, 31)
    masked, padded = tiny_model(family), tiny_model(family)
    masks = random_masks(masked, kept)
    for units in all_neurons(masked):
        units.apply(masks[units.name])
    left = shrink(padded, masks, multiple=8)
    assert left["neurons_per_block"] == [24, 8, 32] and left["padding_per_block"] == [4, 7, 1]
    torch.testing.assert_close(padded.hf(tokens).logits, masked.hf(tokens).logits, rtol=1e-4, atol=1e-4)
    for units, before, zeros in zip(all_neurons(padded), all_neurons(masked), left["padding_per_block"], strict=True):
        assert int(units.zero.count_nonzero()) == zeros
        first = (~masks[before.name]).nonzero().flatten()[:zeros]
        stays = masks[before.name].index_fill(0, first, True)
        assert torch.equal(units.mlp.down.weight, before.mlp.down.weight[:, stays])
    left = shrink(padded, {units.name: ~units.zero for units in all_neurons(padded)}, multiple=32)
    assert left["neurons_per_block"] == [24, 8, 32]  # no more than there were
    assert shrink(padded, {units.name: ~units.zero for units in all_neurons(padded)})["neurons_per_block"] == list(kept)


def test_a_multiple_counts_blocks_that_stay_and_neurons_that_were_dropped(tiny_model):
    model = tiny_model("llama")
    first, _, last = all_neurons(model)
    masks = {name: torch.arange(48) < kept for name, kept in ((first.name, 5), (last.name, 33))}
    masks[blocks_of(model).name] = torch.tensor([False, True, True])
    left = shrink(model, masks, multiple=40)
    assert left["neurons_per_block"] == [48, 40] and left["padding_per_block"] == [0, 7]


def test_a_multiple_can_make_an_ordinary_folder_of_unequal_widths(tiny_model, tmp_path):
    model = tiny_model("llama")
    shrink(model, random_masks(model, (18, 17, 24)), multiple=8)
    model.hf.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.intermediate_size == 24
    assert model.hf.config.model_type == "llama"
