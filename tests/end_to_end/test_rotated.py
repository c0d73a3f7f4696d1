"""A rotated model as a run leaves it: its folder, its size, its masks, and what another run takes of it."""

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.end_to_end.conftest import record


def with_lively_norms(folder):
    """Without them a tied head could stay tied."""
    hf = AutoModelForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    for parameter in hf.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    hf.save_pretrained(folder)


def test_a_run_saves_an_ordinary_folder_and_another_takes_it_from_the_store(
    command, local_overrides, model_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("PRUNE_LAB_CACHE", str(tmp_path / "cache"))
    path = next(each for each in local_overrides if each.startswith("model.path=")).partition("=")[2]
    with_lively_norms(path)
    job = [
        *local_overrides, "method=rotated", "method.steps=5", "sparsity=nm_2of4", "save_model=true",
        "skip_finished=true", "stage_cache_min_seconds=0", "evaluate=size",
    ]  # fmt: skip
    said = command(*job, f"hydra.run.dir={tmp_path / 'first'}")
    assert said.status == 0, said.err
    assert "2048 parameters more" in said.out + said.err
    first = record(tmp_path / "first")
    dense, pruned = (first["metrics"][f"{stage}/parameters"] for stage in ("dense", "evaluate"))
    assert pruned == dense + 64 * 32
    assert first["protocol"]["prune"]["rotation"]["parameters_added"] == 64 * 32

    saved = tmp_path / "first/model"
    assert AutoConfig.from_pretrained(saved).model_type == AutoConfig.from_pretrained(path).model_type
    assert AutoConfig.from_pretrained(saved).tie_word_embeddings is False
    weights = AutoModelForCausalLM.from_pretrained(saved).state_dict()
    masks = load_file(tmp_path / "first/masks.safetensors")
    assert masks and all(torch.equal(weights[f"{name}.weight"] != 0, mask) for name, mask in masks.items())

    again = command(*job, "evaluate=perplexity", f"hydra.run.dir={tmp_path / 'second'}")
    assert again.status == 0, again.err
    assert "prune: taken from an earlier run" in again.out + again.err
    alone = command(*job, "evaluate=perplexity", "skip_finished=false", f"hydra.run.dir={tmp_path / 'alone'}")
    assert alone.status == 0 and "taken from" not in alone.out + alone.err
    second, alone = (record(tmp_path / name)["metrics"]["evaluate/perplexity"] for name in ("second", "alone"))
    assert second == alone
    taken = AutoModelForCausalLM.from_pretrained(tmp_path / "second/model").state_dict()
    assert all(torch.equal(weights[name], taken[name]) for name in weights)


def test_what_it_cannot_do_ends_with_status_2_and_a_remedy(command, local_overrides, tmp_path):
    folder = f"hydra.run.dir={tmp_path / 'run'}"
    iterated = command(*local_overrides, "method=rotated", "stages=[iterate,evaluate]", "finetune=full", folder)
    assert iterated.status == 2
    assert "method Rotated mixes weights" in iterated.err
    units = command(*local_overrides, "method=rotated", "sparsity=neurons", folder)
    assert units.status == 2
    assert "sparsity=nm_2of4" in units.err
    trained = command(*local_overrides, "method=rotated", "method@method.inner=movement", folder)
    assert trained.status == 2
    assert "method.inner" in trained.err and "method@method.inner=sparsegpt" in trained.err
