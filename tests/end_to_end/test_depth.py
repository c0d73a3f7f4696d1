"""Whole blocks are pruned, the model is tuned, they are taken out, and the folder is opened again."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import prune_lab
from prune_lab.models.model_units import blocks_of


def record_of(folder: Path) -> dict:
    return json.loads((folder / "record.json").read_text())


def test_blocks_are_pruned_tuned_taken_out_and_opened_by_others(command, local_overrides, tmp_path, random_tokens):
    folder = tmp_path / "run"
    outcome = command(
        *local_overrides,
        "method=greedy_blocks",
        "sparsity.level=0.67",
        "evaluate=structured",
        "stages=[dense,prune,finetune,shrink,evaluate,save]",
        "finetune=full",
        "training.steps=4",
        "training.batch_size=2",
        "training.lr=1e-2",
        "stages.shrink.repeats=1",
        f"hydra.run.dir={folder}",
    )
    assert outcome.status == 0, outcome.err
    record = record_of(folder)
    metrics, protocol = record["metrics"], record["protocol"]
    gone = protocol["prune"]["removed_blocks"]
    assert len(gone) == len(protocol["prune"]["loss_after_each"]) == 2
    assert metrics["prune/sparsity"] == pytest.approx(2 / 3)
    assert metrics["finetune/sparsity_after"] == metrics["finetune/sparsity_before"] == pytest.approx(2 / 3)
    assert protocol["shrink"]["kept_blocks"] == sorted({0, 1, 2} - set(gone))
    keep = load_file(folder / "masks.safetensors")["model.decoder.layers.blocks"]
    assert keep.tolist() == [block not in gone for block in range(3)]
    assert metrics["evaluate/sparsity"] < 0.01
    assert metrics["shrink/macs_per_token"] == pytest.approx(metrics["shrink/macs_per_token_before"] / 3)

    loaded = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert loaded.config.num_hidden_layers == 1
    assert torch.isfinite(loaded(random_tokens(1, 8)).logits).all()
    again = command(
        *local_overrides, f"model.path={folder / 'model'}", "stages=[evaluate]", f"hydra.run.dir={tmp_path}/2"
    )
    assert again.status == 0, again.err
    perplexity = record_of(tmp_path / "2")["metrics"]["evaluate/perplexity"]
    assert perplexity == pytest.approx(metrics["evaluate/perplexity"], rel=1e-5)


def test_halves_that_go_alone_stay_zeros_and_are_pruned_further(command, local_overrides, tmp_path):
    """What shrinking leaves is known to what comes after it by the names that its blocks have then."""
    folder = tmp_path / "run"
    outcome = command(
        *local_overrides,
        "method=random",
        "sparsity=sub_blocks",
        "sparsity.level=0.67",
        "seed=1",
        "stages=[prune,shrink,finetune,evaluate,save]",
        "finetune=full",
        "training.steps=4",
        "training.batch_size=2",
        "training.lr=1e-2",
        "stages.shrink.repeats=1",
        f"hydra.run.dir={folder}",
    )
    assert outcome.status == 0, outcome.err
    record = record_of(folder)
    gone = record["protocol"]["prune"]["removed_sub_blocks"]
    whole = [block for block in range(3) if {2 * block, 2 * block + 1} <= set(gone)]
    assert len(gone) == 4 and len(whole) == 1 and whole != [2]  # so that names change, and two halves go alone
    assert record["protocol"]["shrink"]["kept_blocks"] == [block for block in range(3) if block not in whole]
    assert "2 of the 4 sub-blocks that were pruned stay as zeros" in outcome.err + outcome.out
    metrics = record["metrics"]
    assert metrics["finetune/sparsity_after"] == pytest.approx(metrics["finetune/sparsity_before"])
    loaded = prune_lab.load(str(folder / "model"))
    halves = [(block.attention.out, block.mlp.down) for block in loaded.blocks]
    assert sum(not linear.weight.any() for half in halves for linear in half) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("method=block_influence", "sparsity.level=0.3"), "sparsity.level=0.3 removes none of 3 blocks"),
        (("method=wanda", "sparsity=blocks"), "cannot make sparsity.pattern=blocks; use sparsity="),
        (("method=block_influence", "sparsity=neurons"), "cannot make sparsity.pattern=neurons; use sparsity=blocks"),
        (
            ("method=greedy_blocks", "allocation=owl"),
            "chooses among all blocks, which go whole; use allocation=uniform",
        ),
        (("method=random", "sparsity=blocks", "allocation=owl"), "removes blocks whole"),
        (
            ("method=greedy_blocks", "method.protect_first=2", "sparsity.level=0.67"),
            "method.protect_first=2 and method.protect_last=0 leave 1 blocks, of which 2 should go",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(command, local_overrides, tmp_path, overrides, message):
    outcome = command(*local_overrides, *overrides, f"hydra.run.dir={tmp_path}/run")
    assert outcome.status == 2
    assert message in " ".join(outcome.err.split())
    assert not (tmp_path / "run" / "masks.safetensors").exists()


def test_in_python(tiny_model, random_tokens, tmp_path):
    """A model with blocks of zeros is smaller after `shrink`; a saved one, too."""
    hf, tokens = tiny_model("llama").hf, random_tokens(6, 16)
    result = prune_lab.prune(hf, method="angular_distance", sparsity__level=0.67, data=tokens, device="cpu")
    assert int(result.masks[blocks_of(result.prunable).name].sum()) == 1
    before = hf(tokens).logits
    saved = result.save(tmp_path / "masked")
    smaller = prune_lab.shrink(result).model
    assert smaller is hf
    assert smaller.config.num_hidden_layers == 1
    assert torch.equal(smaller(tokens).logits, before)
    of_folder = prune_lab.shrink(saved)
    assert torch.equal(of_folder.model(tokens).logits, before)
    assert AutoModelForCausalLM.from_pretrained(of_folder.save(tmp_path / "small")).config.num_hidden_layers == 1
