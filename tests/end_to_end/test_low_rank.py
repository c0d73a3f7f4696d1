"""A run that leaves low-rank parts beside sparse weights: saved, evaluated, taken from the store, trained."""

import json
import math

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from torch.nn.functional import cross_entropy

import prune_lab

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
METHOD = ["method=low_rank", "method.rank=2", "method.share=null", "sparsity.level=0.6"]


def record(folder):
    return json.loads((folder / "record.json").read_text())


def perplexity(model, tokens):
    with torch.no_grad():
        logits = model(tokens).logits
    return math.exp(cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()))


@pytest.fixture
def tokens(token_files):
    return torch.from_numpy(np.load(token_files[1])).long()


def test_peft_opens_what_is_saved_and_the_numbers_are_those_of_both(command, local_overrides, tokens, tmp_path):
    run, alone = tmp_path / "run", tmp_path / "alone"
    assert command(*local_overrides, *METHOD, f"hydra.run.dir={run}").status == 0
    model = AutoPeftModelForCausalLM.from_pretrained(run / "adapter").eval()
    metrics = record(run)["metrics"]
    assert perplexity(model, tokens) == pytest.approx(metrics["evaluate/perplexity"], rel=1e-4)
    saved = prune_lab.load(str(run / "model"))
    assert perplexity(saved.hf, tokens) != pytest.approx(metrics["evaluate/perplexity"], rel=1e-3)
    origin = json.loads((run / "model" / "prune_lab.json").read_text())
    assert origin["steps"] == ["LowRank, 60% unstructured"]  # the zeros are in these weights

    weights = {linear.name: linear.weight for linear in saved.linears}
    entries = sum(weight.numel() for weight in weights.values())
    beside = sum(2 * sum(weight.shape) for weight in weights.values())
    kept = sum(int(weight.count_nonzero()) for weight in weights.values())
    assert metrics["prune/sparsity"] == pytest.approx(1 - (kept + beside) / entries)
    assert metrics["prune/sparsity"] == pytest.approx(0.6, abs=1e-3)
    lines = (run / "layers.csv").read_text().splitlines()
    assert lines[0].endswith(",seconds,rank")
    assert all(line.endswith(",2") for line in lines[1:])
    sized = ["evaluate=size", f"hydra.run.dir={alone}"]
    assert command(*local_overrides, *METHOD, *sized).status == 0
    sizes = record(alone)["metrics"]
    assert sizes["evaluate/sparsity"] == pytest.approx(metrics["prune/sparsity"])
    assert sizes["evaluate/parameters"] - sizes["dense/parameters"] == beside
    assert sizes["dense/nonzeros"] - sizes["evaluate/nonzeros"] == entries - kept - beside


def test_parts_found_together_are_saved_as_others_are(command, local_overrides, tokens, tmp_path):
    run = tmp_path / "run"
    job = [*local_overrides, *METHOD, "method.fit=joint", f"hydra.run.dir={run}"]
    outcome = command(*job)
    assert outcome.status == 0, outcome.err
    model, metrics = AutoPeftModelForCausalLM.from_pretrained(run / "adapter").eval(), record(run)["metrics"]
    assert perplexity(model, tokens) == pytest.approx(metrics["evaluate/perplexity"], rel=1e-4)
    assert metrics["prune/sparsity"] == pytest.approx(0.6, abs=1e-3)
    refused = command(*local_overrides, *METHOD, "method.fit=both")
    assert refused.status == 2
    assert "method.fit='both' is not allowed" in refused.err
    assert "after, joint" in " ".join(refused.err.split())


def test_another_run_takes_it_with_its_adapter(command, local_overrides, tmp_path):
    job = [*local_overrides, *METHOD, "skip_finished=true", "stage_cache_min_seconds=0"]
    assert command(*job, f"hydra.run.dir={tmp_path}/first").status == 0
    second = [*job, "finetune=full", "training.steps=2", f"hydra.run.dir={tmp_path}/second"]
    outcome = command(*second)
    assert outcome.status == 0, outcome.err
    first, second = record(tmp_path / "first"), record(tmp_path / "second")
    assert "prune" in second["protocol"]["taken"]["stages"]
    before = second["metrics"]["finetune/perplexity_before"]
    assert before == pytest.approx(first["metrics"]["evaluate/perplexity"], rel=1e-5)
    assert (tmp_path / "second" / "adapter" / "adapter_config.json").is_file()


@pytest.mark.parametrize("update", ["lora finetune.merge=false", "full", "distill"])
def test_training_goes_on_from_the_optimum(command, local_overrides, tokens, tmp_path, update):
    run, settings = tmp_path / "run", ["training.steps=30", "training.lr=2e-3", "training.batch_size=2"]
    outcome = command(*local_overrides, *METHOD, f"finetune={update}".split()[0], *update.split()[1:], *settings,
                      f"hydra.run.dir={run}")  # fmt: skip
    assert outcome.status == 0, outcome.err
    written = record(run)
    metrics = written["metrics"]
    assert metrics["finetune/loss"] < math.log(metrics["finetune/perplexity_before"])
    assert metrics["finetune/sparsity_before"] == metrics["finetune/sparsity_after"] > 0.6
    model = AutoPeftModelForCausalLM.from_pretrained(run / "adapter").eval()
    assert perplexity(model, tokens) == pytest.approx(metrics["evaluate/perplexity"], rel=1e-4)
    steps = json.loads((run / "model" / "prune_lab.json").read_text())["steps"]
    if update in ("full", "distill"):
        assert len(steps) == 2
        return
    assert steps == ["LowRank, 60% unstructured"]
    beside = sum(2 * sum(linear.shape) for linear in prune_lab.load(str(run / "model")).linears)
    assert (metrics["finetune/trained_parameters"], metrics["finetune/rank"]) == (beside, 2)
    assert written["protocol"]["finetune"]["update"] == "the low-rank parts that pruning left"


def test_merged_there_is_no_adapter_and_no_sparsity(command, local_overrides, tokens, tmp_path):
    outcome = command(*local_overrides, *METHOD, "method.merge=true", f"hydra.run.dir={tmp_path}/run")
    assert outcome.status == 0, outcome.err
    metrics = record(tmp_path / "run")["metrics"]
    assert "dense" in outcome.err + outcome.out
    assert metrics["prune/sparsity"] < 0.01
    assert not (tmp_path / "run" / "adapter").exists()
    saved = prune_lab.load(str(tmp_path / "run" / "model")).hf
    assert perplexity(saved, tokens) == pytest.approx(metrics["evaluate/perplexity"], rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["finetune=lora"], "finetune.merge=true would set the adapter that method=low_rank leaves to zero"),
        (["finetune=sparse_lora"], "finetune=sparse_lora masks its updates"),
        (["finetune=lora", "finetune.merge=false", "finetune.dropout=0.1"], "finetune.dropout=0.1 is not allowed"),
        (["finetune=full", "training.fsdp=true"], "training.fsdp=true divides weights"),
        (["model.stream=true"], "does not go with model.stream=true; use method.merge=true"),
        (["stages=[dense,iterate,evaluate]", "finetune=full"], "later rounds cannot prune them"),
        (["method.rank=40"], "a low-rank part of rank 40 would take"),
        (["method.share=0.1"], "method.rank=2 and method.share are two ways"),
        (["sparsity=neurons"], "cannot make sparsity.pattern=neurons"),
    ],
)
def test_what_does_not_go_with_it_is_refused_before_anything(command, local_overrides, tmp_path, settings, message):
    method = [each for each in METHOD if "sparsity=neurons" not in settings or "level" not in each]
    outcome = command(*local_overrides, *method, *settings, f"hydra.run.dir={tmp_path}/run")
    assert outcome.status == 2
    assert message in " ".join((outcome.err + outcome.out).split())
    assert not (tmp_path / "run" / "masks.safetensors").exists()
