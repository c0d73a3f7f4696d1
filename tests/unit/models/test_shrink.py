import pytest
import torch
from transformers import AutoModelForCausalLM

import prune_lab
from prune_lab.errors import BadInput
from prune_lab.masks import Masks
from prune_lab.models.shrink import finish_folder, shrink
from prune_lab.models.units import all_neurons


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
    assert shrink(shrunk, masks) == list(kept)
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
    finish_folder(tmp_path, shrunk.hf.config)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(tokens).logits, shrunk.hf(tokens).logits, rtol=0, atol=0)


def test_unequal_widths_are_opened_by_prune_lab_and_refused_by_others(tiny_model, random_tokens, family, tmp_path):
    tokens = random_tokens()
    shrunk, expected = masked_and_shrunk(tiny_model, family, (20, 1, 31), tokens)
    torch.testing.assert_close(shrunk.hf(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    shrunk.hf.save_pretrained(tmp_path)
    finish_folder(tmp_path, shrunk.hf.config)
    loaded = prune_lab.load(str(tmp_path))
    torch.testing.assert_close(loaded.hf(tokens).logits, shrunk.hf(tokens).logits, rtol=0, atol=0)
    assert [units.count for units in all_neurons(loaded)] == [20, 1, 31]
    with pytest.raises(ValueError, match=f"prune_lab_{loaded.hf.config.model_type}"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert shrink(loaded, random_masks(loaded, (1, 1, 1))) == [1, 1, 1]  # and may become equal again


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
    finish_folder(tmp_path, model.hf.config)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace("20,", "21,", 1))
    with pytest.raises(BadInput, match="cannot load the checkpoint"):
        prune_lab.load(str(tmp_path))
