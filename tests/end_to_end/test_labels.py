"""A run is called what it is, and what it saves says where it comes from."""

import json
import math

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from torch.nn.functional import cross_entropy

from prune_lab.report.page.run import read_run
from tests.end_to_end.conftest import record


def test_a_run_on_a_saved_model_names_what_was_done_before_and_claims_nothing(command, local_overrides, tmp_path):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    job = [*local_overrides, "method=wanda", "sparsity.level=0.6"]
    assert command(*job, f"hydra.run.dir={first}").status == 0
    again = [*local_overrides, f"model.path={first}/model"]
    outcome = command(*again, "stages=[evaluate]", f"hydra.run.dir={second}")
    assert outcome.status == 0, outcome.err
    was, now = record(first), record(second)
    assert was["title"] == "tiny_opt, Wanda, 60% unstructured"
    assert now["title"] == "tiny_opt (Wanda, 60% unstructured), evaluated only"
    assert now["title"] in outcome.out
    assert now["protocol"]["parent"] == {
        "model": "tiny_opt (Wanda, 60% unstructured)",
        "run": {"key": was["key"], "identity": was["identity"]},
    }
    shown = read_run(second, "second").attributes
    assert [shown[key] for key in ("model", "method", "pattern", "level", "allocation")] == [
        "tiny_opt (Wanda, 60% unstructured)", None, None, None, None,
    ]  # fmt: skip
    tuning = ["stages=[finetune,save]", "finetune=full", "training.steps=1", "training.batch_size=2"]
    assert command(*again, *tuning, f"hydra.run.dir={third}").status == 0
    assert record(third)["title"] == "tiny_opt (Wanda, 60% unstructured), tuned"
    origin = json.loads((third / "model" / "prune_lab.json").read_text())
    assert origin["steps"] == ["Wanda, 60% unstructured", "tuned"]
    assert origin["parent"]["run"]["key"] == was["key"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
def test_an_adapter_that_is_kept_apart_is_opened_on_the_pruned_model(command, local_overrides, token_files, tmp_path):
    run = tmp_path / "run"
    tuning = ["finetune=lora", "finetune.merge=false", "training.steps=8", "training.lr=0.05"]
    job = [*local_overrides, "method=wanda", "sparsity.level=0.6", *tuning, "skip_finished=true"]
    for folder in (run, tmp_path / "copy"):
        outcome = command(*job, f"hydra.run.dir={folder}")
        assert outcome.status == 0, outcome.err
        base = json.loads((folder / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert base == str(folder / "model")  # the second was taken from the first, and needs it no more
    tokens = torch.from_numpy(np.load(token_files[1])).long()
    model = AutoPeftModelForCausalLM.from_pretrained(run / "adapter").eval()
    with torch.no_grad():
        logits = model(tokens).logits
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    metrics = record(run)["metrics"]
    assert math.exp(loss) == pytest.approx(metrics["evaluate/perplexity"], rel=1e-4)
    assert metrics["evaluate/perplexity"] != pytest.approx(metrics["finetune/perplexity_before"], rel=1e-3)
    origin = json.loads((run / "model" / "prune_lab.json").read_text())
    assert origin["steps"] == ["Wanda, 60% unstructured"]  # the updates are not in these weights
    outcome = command(*local_overrides, f"model.path={run}/adapter", f"hydra.run.dir={tmp_path}/other")
    assert outcome.status == 2
    assert "is a PEFT adapter" in outcome.err


def test_without_a_saved_model_no_adapter_is_left_alone(command, local_overrides, tmp_path):
    tuning = ["finetune=lora", "finetune.merge=false", "training.steps=1", "save_model=false", "method=wanda"]
    assert command(*local_overrides, *tuning, f"hydra.run.dir={tmp_path}/run").status == 0
    assert not (tmp_path / "run" / "adapter").exists()
