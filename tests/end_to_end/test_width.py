"""Neurons and heads are pruned at once, the model is tuned, they are taken out, and the folder is opened again."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import prune_lab
from prune_lab.models.load import Checkpoint
from prune_lab.models.model_units import all_neurons


def record_of(folder: Path) -> dict:
    return json.loads((folder / "record.json").read_text())


@pytest.fixture
def llama(model_folder, local_overrides):
    """The smallest job on a family that can be given biases."""
    folder = model_folder("llama")
    return [override for override in local_overrides if "model.path" not in override] + [f"model.path={folder}"]


def run(command, overrides, folder, *more):
    outcome = command(*overrides, *more, f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    return record_of(folder)


@pytest.mark.parametrize("method", ["flap", "ziplm"])
def test_width_is_pruned_tuned_taken_out_and_opened_again(command, llama, tmp_path, random_tokens, method):
    """With a bias that the dense model has not, also where the pruning is taken from an earlier run."""
    settings = (
        f"method={method}",
        "method.bias=true",
        "sparsity.level=0.4",
        "stages=[dense,prune,finetune,shrink,evaluate,save]",
        "finetune=full",
        "training.steps=4",
        "training.batch_size=2",
        "stages.shrink.repeats=1",
        "stage_cache_min_seconds=0",
        "skip_finished=true",
    )
    first = run(command, llama, tmp_path / "1", *settings)
    metrics = first["metrics"]
    assert 0.3 < metrics["prune/sparsity"] <= 0.4
    assert metrics["finetune/sparsity_after"] == pytest.approx(metrics["finetune/sparsity_before"])
    assert metrics["shrink/parameters"] < metrics["shrink/parameters_before"]
    second = run(command, llama, tmp_path / "2", *settings, "evaluate=size")
    assert second["protocol"]["taken"]["stages"] == ["prune", "finetune"]
    for folder in ("1", "2"):
        loaded = prune_lab.load(str(tmp_path / folder / "model"))
        assert (loaded.hf.config.attention_bias, loaded.hf.config.mlp_bias) == (True, True)
        assert any(linear.bias.any() for linear in loaded.linears)
        assert torch.isfinite(loaded.hf(random_tokens(1, 8)).logits).all()
    again = run(command, llama, tmp_path / "3", f"model.path={tmp_path}/1/model", "stages=[evaluate]")
    assert again["metrics"]["evaluate/perplexity"] == pytest.approx(metrics["evaluate/perplexity"], rel=1e-5)


def test_a_search_divides_neurons_and_heads_for_the_method_that_prunes(command, llama, tmp_path):
    settings = ("method=ziplm", "sparsity.level=0.5", "allocation=evolution_units", "allocation.generations=3")
    small = ("allocation.offspring=4", "allocation.tokens=[32,64]", "save_model=true", "stages=[prune,shrink,save]")
    record = run(command, llama, tmp_path / "1", *settings, *small, "stages.shrink.repeats=1")
    assert record["protocol"]["prune"]["allocation"]["inner"]["name"] == "ZipLM"
    assert (tmp_path / "1" / "allocation.csv").is_file()
    model = Checkpoint(str(tmp_path / "1" / "model")).load(None)
    neuron = all_neurons(model)[0].parameters_each
    metrics = record["metrics"]
    gone = metrics["shrink/parameters_before"] - metrics["shrink/parameters"]
    assert 0.49 < metrics["prune/sparsity"] <= 0.5
    assert -1 < gone / metrics["prune/sparsity"] / 2 - gone < neuron


@pytest.mark.parametrize("method", ["flap", "ziplm", "text_pruner", "random"])
def test_queries_go_and_their_keys_stay(command, llama, tmp_path, random_tokens, method):
    settings = (f"method={method}", "sparsity=neurons_query_heads", "sparsity.level=0.5", "method.scope=model")
    record = run(command, llama, tmp_path / "1", *settings, "stages.shrink.repeats=1", "save_model=true")
    assert 0.4 < record["metrics"]["prune/sparsity"] <= 0.5
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "1" / "model")
    blocks = prune_lab.load(tmp_path / "1" / "model").blocks
    queries = [block.attention.heads for block in blocks]
    assert {block.attention.kv_heads for block in blocks} == {2}
    assert set(queries) <= {2, 4}
    assert record["protocol"]["shrink"].get("query_heads_per_block", [4] * 3) == queries
    assert torch.isfinite(loaded(random_tokens(1, 8)).logits).all()


def test_a_family_with_a_key_for_each_query_is_told_so(command, local_overrides, tmp_path):
    settings = ("method=flap", "sparsity=query_heads", f"hydra.run.dir={tmp_path}/1")
    outcome = command(*local_overrides, *settings)
    assert outcome.status == 2
    assert "has a key for each query, so that no query can go without its key; use sparsity=heads" in outcome.err


@pytest.mark.parametrize(("stages", "told"), [("prune,save", True), ("prune,shrink,save", False)])
def test_who_saves_zeros_where_units_were_is_told(command, llama, tmp_path, stages, told):
    settings = ("method=wanda_units", "sparsity.level=0.5", f"stages=[{stages}]", "stages.shrink.repeats=1")
    outcome = command(*llama, *settings[: 4 if "shrink" in stages else 3], f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.status == 0, outcome.err
    found = re.search(r"neurons and heads that were pruned \(([\d,]+) parameters\) are zeros", outcome.err)
    assert bool(found) == told
    if found:
        blocks = Checkpoint(str(tmp_path / "run" / "model")).load(None).blocks
        zeros = sum(int((linear.weight == 0).sum()) for block in blocks for linear in block.linears)
        assert int(found[1].replace(",", "")) == zeros


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("method=ziplm", "sparsity=unstructured"), "cannot make sparsity.pattern=unstructured; use sparsity=heads"),
        (("method=wanda", "sparsity=width"), "cannot make sparsity.pattern=width"),
        (("method=ziplm", "allocation=owl"), "allocations share out single weights"),
        (("method=flap", "allocation=evolution_units"), "makes one cut for the whole model; use allocation=uniform"),
        (("method=ziplm", "allocation=evolution"), "method@allocation.inner=ziplm"),
        (("method=ziplm", "method.damping=-1"), "method.damping=-1"),
        (("method=gum", "sparsity=query_heads"), "cannot make sparsity.pattern=query_heads; use sparsity=neurons"),
        (("method=taylor_units", "method.order=third"), "method.order='third'"),
    ],
)
def test_what_cannot_be_is_refused(command, llama, tmp_path, overrides, message):
    outcome = command(*llama, *overrides, f"hydra.run.dir={tmp_path}/1")
    assert outcome.status == 2
    assert message in outcome.err
    assert not (tmp_path / "1" / "record.json").exists()
