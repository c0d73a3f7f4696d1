"""Neurons are pruned while the model is trained, removed, and the smaller folder is opened again."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM

import prune_lab
from prune_lab.errors import BadInput
from prune_lab.models.model_units import all_heads, all_neurons
from prune_lab.run.runner import execute


@pytest.mark.parametrize(("method", "equal"), [("l2_neurons", True), ("gum", False)])
def test_prune_while_training_shrink_and_open_again(
    command, local_overrides, model_folder, tmp_path, random_tokens, method, equal
):
    folder = tmp_path / "run"
    job = (
        *local_overrides,
        f"method={method}",
        "sparsity=neurons",
        "evaluate=structured",
        "stages=[dense,prune,shrink,evaluate,save]",
        "training.steps=20",
        "training.batch_size=2",
        "training.lr=1e-2",
        "stages.shrink.repeats=1",
    )
    if not equal:
        job += ("method.lr=1",)
    outcome = command(*job, f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    assert "uniqueness of all neurons" in outcome.out
    record = json.loads((folder / "record.json").read_text())
    metrics, widths = record["metrics"], record["protocol"]["shrink"]["neurons_per_block"]
    assert sum(widths) == 96
    assert (len(set(widths)) == 1) == equal
    assert metrics["prune/sparsity"] == 0.5
    assert metrics["evaluate/parameters"] == metrics["shrink/parameters"] < metrics["dense/parameters"]
    assert metrics["shrink/bytes"] == 4 * metrics["shrink/parameters"]

    loaded = prune_lab.load(str(folder / "model"))
    assert [units.count for units in all_neurons(loaded)] == widths
    tokens = random_tokens(1, 8)
    opened = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    assert torch.equal(loaded.hf(tokens).logits, opened(tokens).logits) and torch.isfinite(opened(tokens).logits).all()
    again = command(
        *local_overrides,
        f"model.path={folder / 'model'}",
        "stages=[evaluate]",
        f"hydra.run.dir={tmp_path}/again",
    )
    assert again.status == 0, again.err
    perplexity = json.loads((tmp_path / "again" / "record.json").read_text())["metrics"]["evaluate/perplexity"]
    assert perplexity == pytest.approx(metrics["evaluate/perplexity"], rel=1e-5)


def test_neurons_stay_as_zeros_up_to_a_multiple_and_through_a_training(command, local_overrides, tmp_path):
    """12 of 64 neurons are pruned in each block; 4 of them stay for a multiple of 8, and stay zeros."""
    folder = tmp_path / "run"
    job = (*local_overrides, "method=magnitude_neurons", "sparsity.level=0.2", "evaluate=size")
    job += ("stages=[prune,shrink,finetune,evaluate,save]", "finetune=lora", "training.steps=4")
    outcome = command(*job, "stages.shrink.repeats=1", "stages.shrink.multiple=8", f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    assert "12 pruned neurons (780 parameters) stay as zeros" in outcome.err + outcome.out
    record = json.loads((folder / "record.json").read_text())
    told = record["protocol"]["shrink"]
    assert told["multiple"] == 8 and told["padding_parameters"] == 12 * (32 + 1 + 32)
    assert told["neurons_per_block"] == [56] * 3 and told["padding_per_block"] == [4] * 3
    loaded = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert loaded.config.ffn_dim == 56
    zeros = [int(units.zero.count_nonzero()) for units in all_neurons(prune_lab.load(folder / "model"))]
    assert zeros == [4, 4, 4]
    refused = command(
        *local_overrides, "stages=[prune,shrink]", "stages.shrink.multiple=0", "hydra.run.dir=" + str(folder)
    )
    assert refused.status == 2
    assert "stages.shrink.multiple=0 is not allowed; allowed: whole numbers of at least 1, or null" in refused.err


def test_heads_are_pruned_shrunk_and_saved(command, local_overrides, tmp_path, random_tokens):
    """An OPT model with half of its heads: a folder of our own, smaller, which computes what the masked model did."""
    folder = tmp_path / "run"
    job = (*local_overrides, "method=top_v", "sparsity=heads", "stages=[dense,prune,shrink,evaluate,save]")
    outcome = command(*job, "evaluate=all", "evaluate.zero_shot=null", "training.steps=6", f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    record = json.loads((folder / "record.json").read_text())
    heads = record["protocol"]["shrink"]["heads_per_block"]
    assert sum(heads) == 6
    assert record["metrics"]["prune/sparsity"] == 0.5
    assert record["metrics"]["evaluate/parameters"] < record["metrics"]["dense/parameters"]
    loaded = prune_lab.load(str(folder / "model"))
    assert [units.count for units in all_heads(loaded)] == heads
    assert torch.isfinite(loaded.hf(random_tokens(1, 8)).logits).all()


def test_a_teacher_that_does_not_fit_is_refused_before_anything_runs(command, local_overrides, model_folder, tmp_path):
    small = OPTConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=8, word_embed_proj_dim=16
    )
    OPTForCausalLM(small).save_pretrained(tmp_path / "teacher")
    outcome = command(
        *local_overrides,
        "method=gum",
        "finetune=distill",
        f"training.distill.teacher={tmp_path}/teacher",
        f"hydra.run.dir={tmp_path}/run",
    )
    assert outcome.status == 2
    assert "vocabulary of 60 tokens and the model one of 64" in outcome.err
    assert json.loads((tmp_path / "run" / "record.json").read_text())["metrics"] == {}


def test_a_model_is_tuned_after_pruning_and_zeros_stay(command, local_overrides, tmp_path):
    folder = tmp_path / "run"
    outcome = command(
        *local_overrides,
        "method=magnitude",
        "stages=[prune,finetune,evaluate,save]",
        "finetune=distill",
        "training.steps=5",
        "evaluate=size",
        f"hydra.run.dir={folder}",
    )
    assert outcome.status == 0, outcome.err
    metrics = json.loads((folder / "record.json").read_text())["metrics"]
    assert metrics["evaluate/sparsity"] == 0.5
    assert metrics["finetune/loss"] > 0


@pytest.mark.parametrize("finetune", ["full", "lora", "sparse_lora", "lora finetune.merge=false", "distill"])
def test_tuning_after_pruning_keeps_what_was_pruned(command, local_overrides, tmp_path, finetune):
    folder = tmp_path / "run"
    job = (*local_overrides, "method=wanda", "sparsity.level=0.7", "training.steps=6", "evaluate=size")
    outcome = command(*job, *f"finetune={finetune}".split(), f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    metrics = json.loads((folder / "record.json").read_text())["metrics"]
    assert metrics["finetune/sparsity_before"] == metrics["finetune/sparsity_after"] > 0.68
    assert metrics["finetune/trained_parameters"] > 0
    saved = prune_lab.load(str(folder / "model"))
    zeros = sum(int((linear.weight == 0).sum()) for linear in saved.linears) / sum(
        s.weight.numel() for s in saved.linears
    )
    assert zeros == pytest.approx(metrics["finetune/sparsity_after"])
    assert (folder / "adapter" / "adapter_config.json").is_file() == ("merge=false" in finetune)


def test_nothing_is_tuned_unless_asked_for_and_not_twice(command, local_overrides, tmp_path):
    for name, job in {"none": ["method=wanda"], "trained": ["method=top_v", "finetune=full"]}.items():
        outcome = command(*local_overrides, *job, "training.steps=2", f"hydra.run.dir={tmp_path}/{name}")
        assert outcome.status == 0, outcome.err
        metrics = json.loads((tmp_path / name / "record.json").read_text())["metrics"]
        assert not any(metric.startswith("finetune/") for metric in metrics)
    assert "stages.finetune.again=true" in outcome.err + outcome.out


def test_allocations_and_trained_methods_do_not_mix(command, local_overrides, tmp_path):
    outcome = command(
        *local_overrides, "method=gum", "sparsity=neurons", "allocation=erk", f"hydra.run.dir={tmp_path}/run"
    )
    assert outcome.status == 2
    assert "use allocation=uniform" in outcome.err


def test_a_training_that_was_cut_off_goes_on_where_it_was(command, local_overrides, tmp_path, monkeypatch):
    """The same command again: the same numbers as without the interruption, and no state is left behind."""
    from prune_lab.training.step import Stepper

    job = (
        *local_overrides,
        "method=top_v",
        "sparsity=neurons",
        "stages=[prune,evaluate]",
        "training.steps=12",
        "training.save_every=5",
    )
    assert command(*job, f"hydra.run.dir={tmp_path}/whole").status == 0
    make_step = Stepper.__call__

    def cut_off(self, step):
        if step == 8:
            raise KeyboardInterrupt
        return make_step(self, step)

    monkeypatch.setattr(Stepper, "__call__", cut_off)
    assert command(*job, f"hydra.run.dir={tmp_path}/cut").status != 0
    assert (tmp_path / "cut" / "training" / "prune" / "latest.json").is_file()
    monkeypatch.setattr(Stepper, "__call__", make_step)
    outcome = command(*job, f"hydra.run.dir={tmp_path}/cut")
    assert outcome.status == 0, outcome.err
    assert "goes on at step 5" in outcome.err + outcome.out
    results = [json.loads((tmp_path / name / "record.json").read_text())["metrics"] for name in ("whole", "cut")]
    assert results[1]["evaluate/perplexity"] == pytest.approx(results[0]["evaluate/perplexity"], rel=1e-5)
    assert not (tmp_path / "cut" / "training" / "prune").exists()


def test_neurons_pruned_at_once_are_tuned_and_taken_out(command, local_overrides, tmp_path):
    folder = tmp_path / "run"
    outcome = command(
        *local_overrides,
        "method=magnitude_neurons",
        "evaluate=study",
        "evaluate.efficiency.repeats=1",
        "stages=[dense,prune,finetune,shrink,evaluate]",
        "finetune=full",
        "training.steps=3",
        "training.batch_size=2",
        "stages.shrink.repeats=1",
        f"hydra.run.dir={folder}",
    )
    assert outcome.status == 0, outcome.err
    metrics = json.loads((folder / "record.json").read_text())["metrics"]
    assert metrics["prune/sparsity"] == 0.5
    assert metrics["finetune/sparsity_after"] == metrics["finetune/sparsity_before"]
    assert metrics["evaluate/prefill_flops"] == metrics["evaluate/prefill_nonzero_flops"]  # nothing is zero any more
    assert metrics["evaluate/prefill_flops_ratio"] < 0.9
    assert metrics["evaluate/training_perplexity"] != metrics["evaluate/perplexity"]


def test_shrinking_without_units_that_went_does_nothing(command, local_overrides, tmp_path):
    folder = tmp_path / "run"
    outcome = command(*local_overrides, "method=magnitude", "stages=[prune,shrink]", f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    assert not [name for name in json.loads((folder / "record.json").read_text())["metrics"] if "shrink/" in name]


def test_an_allocation_of_weights_is_refused_for_neurons(command, local_overrides):
    outcome = command(*local_overrides, "method=magnitude_neurons", "allocation=owl")
    assert outcome.status == 2
    assert "allocations share out single weights, and sparsity.pattern=neurons removes neurons whole" in outcome.err


@pytest.mark.parametrize("pattern", ["neurons_values", "neurons_values_keys"])
def test_updates_beside_heads_that_lose_rows_are_refused_before_anything_goes(
    pattern, configured, local_overrides, tmp_path
):
    asked = ["method=random", f"sparsity={pattern}", "finetune=lora", "training.steps=2", "training.batch_size=2"]
    with pytest.raises(BadInput, match=r"will have heads that have lost values.*use finetune=sparse_lora or full"):
        execute(configured(*local_overrides, *asked, "stages=[prune,shrink,finetune]"), tmp_path / "refused")
    assert not (tmp_path / "refused" / "masks.safetensors").exists()
    tuned = [*asked, "stages=[prune,finetune,shrink]", "stages.shrink.repeats=1"]
    assert execute(configured(*local_overrides, *tuned), tmp_path / "tuned")["status"] == "finished"
