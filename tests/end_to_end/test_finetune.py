"""Training after pruning, as a user sees it."""

import json

import pytest


@pytest.mark.parametrize("finetune", ["full", "lora", "sparse_lora"])
def test_what_was_pruned_stays_and_what_training_did_is_told(command, local_overrides, tmp_path, finetune):
    job = (*local_overrides, "method=wanda", "sparsity.level=0.7", "evaluate=perplexity")
    found = {}
    for choice in ("none", finetune):
        folder = tmp_path / choice
        outcome = command(
            *job, f"finetune={choice}", "training.steps=10", "training.batch_size=2", f"hydra.run.dir={folder}"
        )
        assert outcome.status == 0, outcome.err
        found[choice] = json.loads((folder / "record.json").read_text())["metrics"]
    assert "zeros of what was pruned, after tuning" in outcome.out
    pruned, tuned = found["none"], found[finetune]
    assert not [name for name in pruned if name.startswith("finetune/")]
    assert tuned["finetune/perplexity_before"] == pruned["evaluate/perplexity"] != tuned["evaluate/perplexity"]
    assert tuned["finetune/sparsity_before"] == tuned["finetune/sparsity_after"] == tuned["prune/sparsity"]


def test_the_score_before_training_can_be_left_out(command, local_overrides, tmp_path):
    job = (*local_overrides, "finetune=full", "training.steps=2", "stages.finetune.score=false")
    assert command(*job, "stages=[prune,finetune]", f"hydra.run.dir={tmp_path / 'run'}").status == 0
    assert "finetune/perplexity_before" not in json.loads((tmp_path / "run/record.json").read_text())["metrics"]
