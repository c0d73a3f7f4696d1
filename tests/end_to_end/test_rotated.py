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


def test_matrices_between_blocks_go_through_a_run_the_store_streaming_and_training(
    command, local_overrides, tmp_path, monkeypatch
):
    monkeypatch.setenv("PRUNE_LAB_CACHE", str(tmp_path / "cache"))
    path = next(each for each in local_overrides if each.startswith("model.path=")).partition("=")[2]
    with_lively_norms(path)
    job = [
        *local_overrides, "method=rotated", "method.matrices=per_block", "method.steps=5", "sparsity=nm_2of4",
        "save_model=true", "skip_finished=true", "stage_cache_min_seconds=0",
    ]  # fmt: skip
    said = command(*job, "evaluate=size", f"hydra.run.dir={tmp_path / 'first'}")
    assert said.status == 0, said.err
    first = record(tmp_path / "first")
    dense, pruned = (first["metrics"][f"{stage}/parameters"] for stage in ("dense", "evaluate"))
    blocks = AutoConfig.from_pretrained(path).num_hidden_layers
    assert (
        pruned == dense + (blocks + 1) * 32 * 32 == dense + first["protocol"]["prune"]["rotation"]["parameters_added"]
    )
    saved = tmp_path / "first/model"
    assert AutoConfig.from_pretrained(saved).rotations_before == list(range(blocks + 1))
    weights = AutoModelForCausalLM.from_pretrained(saved).state_dict()

    again = command(*job, "evaluate=perplexity", f"hydra.run.dir={tmp_path / 'second'}")
    assert again.status == 0, again.err
    assert "prune: taken from an earlier run" in again.out + again.err
    taken = AutoModelForCausalLM.from_pretrained(tmp_path / "second/model").state_dict()
    assert weights.keys() == taken.keys() and all(torch.equal(weights[name], taken[name]) for name in weights)

    others = [each for each in local_overrides if not each.startswith("model.path=")]
    found = {"as it was": record(tmp_path / "second")["metrics"]["evaluate/perplexity"]}
    for name, stream in (("whole", False), ("streamed", True)):
        job = [*others, f"model.path={saved}", f"model.stream={stream}", "method=dense", "sparsity.level=0"]
        said = command(*job, "evaluate=perplexity", f"hydra.run.dir={tmp_path / name}")
        assert said.status == 0, said.err
        found[name] = record(tmp_path / name)["metrics"]["evaluate/perplexity"]
    assert len(set(found.values())) == 1, found

    job = [*others, f"model.path={saved}", "method=sparsegpt", "sparsity=nm_2of4", "save_model=true"]
    for finetune in ("full", "lora"):
        folder = tmp_path / finetune
        said = command(
            *job, "stages=[dense,prune,finetune,evaluate,save]", f"finetune={finetune}", "training.steps=2",
            "evaluate=size", f"hydra.run.dir={folder}",
        )  # fmt: skip
        assert said.status == 0, said.err
        masks = load_file(folder / "masks.safetensors")
        trained = AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()
        assert all(bool((trained[f"{name}.weight"][~mask] == 0).all()) for name, mask in masks.items())


def test_blocks_of_such_a_model_stay_and_its_neurons_go(command, local_overrides, tmp_path):
    path = next(each for each in local_overrides if each.startswith("model.path=")).partition("=")[2]
    with_lively_norms(path)
    job = [*local_overrides, "method=rotated", "method.matrices=ends", "method.steps=2", "save_model=true"]
    said = command(*job, "evaluate=size", f"hydra.run.dir={tmp_path / 'first'}")
    assert said.status == 0, said.err
    others = [each for each in local_overrides if not each.startswith("model.path=")]
    job = [*others, f"model.path={tmp_path / 'first/model'}", "save_model=true", "sparsity.keep_zeros=false"]
    said = command(*job, "method=block_influence", "sparsity.level=0.5", f"hydra.run.dir={tmp_path / 'blocks'}")
    assert said.status == 2
    assert "rotations_before" in said.err
    said = command(*job, "method=rotated", f"hydra.run.dir={tmp_path / 'again'}")
    assert said.status == 2
    assert "method.residual=false" in said.err
    said = command(*job, "method=wanda_units", "sparsity.level=0.5", f"hydra.run.dir={tmp_path / 'units'}")
    assert said.status == 0, said.err
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "units/model").config
    blocks = AutoConfig.from_pretrained(path).num_hidden_layers
    assert config.rotations_before == [0, blocks]


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
