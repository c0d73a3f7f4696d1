"""Encoders become smaller as decoders do: they say the same of texts, and transformers opens them."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

import prune_lab
from prune_lab.models.load import Checkpoint
from prune_lab.models.model_units import all_heads, all_keys, all_neurons, all_values
from prune_lab.models.origin import Origin
from prune_lab.models.registered import module_of
from prune_lab.models.shrink import shrink
from prune_lab.models.timing import Workload, time_in_turns
from prune_lab.run.stages.save import save_model
from tests.conftest import ENCODER_CONFIGS

UNITS = {"neurons": all_neurons, "heads": all_heads, "values": all_values, "keys": all_keys}
WITHOUT_THE_LAB = """
import sys
from pathlib import Path

sys.modules["prune_lab"] = None  # an import of it fails
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

for folder in map(Path, sys.argv[1:]):
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model", trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules"), type(model)
    expected = load_file(folder / "expected")
    logits = expected.pop("logits")
    assert torch.equal(model(**expected).logits, logits)
    from_config = AutoModelForSequenceClassification.from_config(model.config, trust_remote_code=True)
    assert [each.shape for each in from_config.parameters()] == [each.shape for each in model.parameters()]
"""


@pytest.fixture
def texts(random_tokens):
    """Four texts of different lengths, as arguments of a model."""
    tokens = random_tokens(4, 12).clamp_min(2)
    real = torch.arange(12) < torch.tensor([12, 5, 9, 3])[:, None]
    return {"input_ids": tokens.where(real, 1), "attention_mask": real.long()}


def masks_of(model, kind, counts):
    """Keep-masks that leave so many units of a block, the last ones."""
    units = UNITS[kind](model)
    return {each.name: torch.arange(each.count) >= each.count - n for each, n in zip(units, counts, strict=True)}


@pytest.mark.parametrize(
    ("kind", "counts"),
    [
        ("neurons", (24, 24, 24)),
        ("neurons", (20, 1, 31)),
        ("heads", (2, 2, 2)),
        ("heads", (1, 4, 2)),
        ("values", (20, 9, 32)),
        ("keys", (20, 9, 32)),
    ],
    ids=str,
)
def test_masked_and_shrunk_encoders_say_the_same_and_the_folder_opens(
    tiny_model, encoder_family, texts, tmp_path, kind, counts
):
    masked, shrunk = tiny_model(encoder_family), tiny_model(encoder_family)
    dense, masks = masked.hf(**texts).logits, masks_of(shrunk, kind, counts)
    for units in UNITS[kind](masked):
        units.apply(masks[units.name])
    expected = masked.hf(**texts).logits
    assert not torch.allclose(expected, dense, atol=1e-3)
    before = sum(each.numel() for each in shrunk.hf.parameters())
    left = shrink(shrunk, masks)
    assert sum(each.numel() for each in shrunk.hf.parameters()) < before
    if kind in ("neurons", "heads"):
        assert left[f"{kind}_per_block"] == list(counts)
    torch.testing.assert_close(shrunk.hf(**texts).logits, expected, rtol=1e-4, atol=1e-5)
    shrunk.hf.save_pretrained(tmp_path)
    ordinary = kind == "neurons" and len(set(counts)) == 1  # no configuration says how many heads a block has
    assert AutoConfig.from_pretrained(tmp_path).model_type == ("" if ordinary else "prune_lab_") + encoder_family
    for opened in (AutoModelForSequenceClassification.from_pretrained(tmp_path).eval(), prune_lab.load(tmp_path).hf):
        assert type(opened) is type(shrunk.hf)
        assert torch.equal(opened(**texts).logits, shrunk.hf(**texts).logits)


def test_without_prune_lab_the_file_beside_the_weights_opens_them(tiny_model, texts, tmp_path):
    for family in ENCODER_CONFIGS:
        model = tiny_model(family)
        shrink(model, masks_of(model, "neurons", (20, 1, 31)) | masks_of(model, "heads", (2, 1, 3)))
        shrink(model, masks_of(model, "values", (9, 3, 24)) | masks_of(model, "keys", (16, 8, 11)))
        (tmp_path / family).mkdir()
        save_model(model, Origin("tiny"), tmp_path / family / "model")
        assert (tmp_path / family / "model" / f"{module_of(family)}.py").is_file()
        save_file(texts | {"logits": model.hf(**texts).logits.detach()}, tmp_path / family / "expected")
    folders = [str(tmp_path / family) for family in ENCODER_CONFIGS]
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", WITHOUT_THE_LAB, *folders]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_streamed_encoders_are_saved(tiny_model, texts, tmp_path):
    model = tiny_model("bert")
    shrink(model, masks_of(model, "heads", (2, 1, 3)))
    model.hf.save_pretrained(tmp_path / "one")
    save_model(Checkpoint(str(tmp_path / "one"), stream=True).load(), Origin("tiny"), tmp_path / "two")
    assert torch.equal(prune_lab.load(tmp_path / "two").hf(**texts).logits, model.hf(**texts).logits)


def test_what_is_timed_of_an_encoder_is_a_pass(tiny_model, encoder_family):
    model = tiny_model(encoder_family)
    workload = Workload(batch_size=2, seqlen=512, new_tokens=16, repeats=2).fit(model)
    assert (workload.seqlen, workload.parts) == (64, ("prefill",))
    (passes,) = time_in_turns([model.hf], workload.prompts(model), workload)
    assert [set(each.seconds) for each in passes] == [{"prefill"}] * 2
    assert not any("decode" in name for name in workload.protocol())
