"""A run whose weights stay in their files gives the numbers and the files of one that reads them."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prune_lab.run.runner import execute

VARYING = ("seconds", "memory")


def told(folder):
    metrics = json.loads((folder / "record.json").read_text())["metrics"]
    return {name: value for name, value in metrics.items() if not any(word in name for word in VARYING)}


@pytest.mark.parametrize("method", ["sparsegpt", "magnitude", "reconstruction", "sparsellm"])
def test_a_streamed_run_gives_the_same(configured, local_overrides, tmp_path, method):
    settings = [*local_overrides, f"method={method}", "evaluate=all", "evaluate.zero_shot=null"]
    for stream in (False, True):
        execute(configured(*settings, f"model.stream={str(stream).lower()}"), tmp_path / str(stream))
    one, other = tmp_path / "False", tmp_path / "True"
    found, expected = told(other), told(one)
    assert found.pop("save/bytes") == pytest.approx(expected.pop("save/bytes"), rel=1e-3)  # headers differ
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-5)
    masks = [load_file(folder / "masks.safetensors") for folder in (one, other)]
    assert masks[0].keys() == masks[1].keys()
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])
    models = [AutoModelForCausalLM.from_pretrained(folder / "model").state_dict() for folder in (one, other)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not list(other.glob(".changed-*"))
