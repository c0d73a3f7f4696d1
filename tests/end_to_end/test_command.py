"""The command from end to end, as a user starts it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

STYLES = {"reference": "opt", "reference_llama": "llama", "reference_gpt_neo": "gpt_neo"}
REFERENCE = Path(__file__).parents[2] / "prune_lab" / "reference"


def perplexity(folder: Path, windows: np.ndarray) -> float:
    """As the pruning papers define it, written once more."""
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    losses = []
    with torch.no_grad():
        for window in torch.from_numpy(windows):
            logits = hf(window[None]).logits[0]
            losses.append(functional.cross_entropy(logits[:-1].double(), window[1:]))
    return math.exp(torch.stack(losses).mean())


def test_a_local_model_is_pruned_measured_and_saved(spawn, local_overrides, token_files, tmp_path):
    folder = tmp_path / "run"
    outcome = spawn(*local_overrides, "method=wanda", "sparsity=nm_2of4", f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    assert "leaked" not in outcome.err  # no library says at the end what it has not tidied up
    assert "tiny_opt, Wanda, 2:4" in outcome.out
    assert str(folder) in outcome.out
    expected = {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "masks.safetensors",
        "layers.csv",
        "model",
        "record.json",
    }
    assert {path.name for path in folder.iterdir()} == expected | {".hydra", ".prune_lab", "prune_lab.log"}

    record = json.loads((folder / "record.json").read_text())
    assert record["status"] == "finished"
    assert record["metrics"]["prune/sparsity"] == 0.5
    assert OmegaConf.load(folder / "config.yaml").sparsity.pattern == "2:4"
    assert json.loads((folder / "environment.json").read_text())["packages"]["torch"] == torch.__version__

    masks = load_file(folder / "masks.safetensors")
    pruned = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert pruned.config.use_cache
    for name, keep in masks.items():
        weight = pruned.get_submodule(name).weight
        assert torch.equal(weight != 0, keep)
        assert (keep.unflatten(1, (-1, 4)).sum(-1) == 2).all()
    windows = np.load(token_files[1])
    assert perplexity(folder / "model", windows) == pytest.approx(record["metrics"]["evaluate/perplexity"], rel=1e-5)
    assert perplexity(tmp_path / "tiny_opt", windows) == pytest.approx(record["metrics"]["dense/perplexity"], rel=1e-5)


def test_a_sweep_keeps_its_runs_apart_and_goes_on_after_a_failure(spawn, local_overrides, tmp_path):
    overrides = [override for override in local_overrides if override != "tracker=jsonl"]
    overrides += ["tracker=wandb", "data.samples=1"]
    # Fewer tokens than inputs: without damping the Hessian of the job in the middle has no factor.
    outcome = spawn("-m", *overrides, "method.damping=0.01,0,0.1", f"hydra.sweep.dir={tmp_path}/sweep")
    assert outcome.status == 1, outcome.err
    assert "job 1 " in outcome.err
    assert "raise method.damping" in outcome.err
    assert "Traceback" not in outcome.err
    records = [json.loads((tmp_path / "sweep" / job / "record.json").read_text()) for job in "012"]
    assert [record["status"] for record in records] == ["finished", "failed", "finished"]
    assert [record["config"]["method"]["damping"] for record in records] == [0.01, 0, 0.1]
    assert len({record["key"] for record in records}) == 3
    runs = [list((tmp_path / "sweep" / job / "wandb").glob("offline-run-*")) for job in "012"]
    assert [len(found) for found in runs] == [1, 1, 1]
    assert len({run.name for (run,) in runs}) == 3
    for job in "02":
        lines = (tmp_path / "sweep" / job / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["stage"] for line in lines] == ["dense", "prune", "evaluate", "save"]
        assert len((tmp_path / "sweep" / job / "layers.csv").read_text().splitlines()) == 18 + 1


def test_a_failed_batch_keeps_no_later_one_from_running(command, local_overrides, tmp_path):
    outcome = command(
        "-m", *local_overrides, "method=magnitude", "sparsity.layers=[0,99],null", "hydra.sweeper.max_batch_size=1",
        f"hydra.sweep.dir={tmp_path}/sweep",
    )  # fmt: skip
    assert outcome.status == 2, outcome.err
    records = [json.loads((tmp_path / f"sweep/{job}/record.json").read_text()) for job in (0, 1)]
    assert [each["status"] for each in records] == ["failed", "finished"]


def test_a_job_that_cannot_be_composed_is_found_before_the_first_runs(command, local_overrides, tmp_path):
    outcome = command("-m", *local_overrides, "method=magnitude,magic", f"hydra.sweep.dir={tmp_path}/sweep")
    assert outcome.status == 2 and "magic" in outcome.err
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_without_failures_ends_with_zero_and_groups_its_runs(command, local_overrides, tmp_path):
    outcome = command("-m", *local_overrides, "method=magnitude,random", f"hydra.sweep.dir={tmp_path}/sweep")
    assert outcome.status == 0, outcome.err
    found = {
        job: json.loads((tmp_path / "sweep" / job / "record.json").read_text())["config"]["method"]["_target_"]
        for job in "01"
    }
    assert found == {
        "0": "prune_lab.pruning.methods.magnitude.Magnitude",
        "1": "prune_lab.pruning.methods.random.Random",
    }


@pytest.mark.parametrize("model", STYLES)
def test_a_shipped_model_runs_out_of_the_box(command, tmp_path, model):
    if not (REFERENCE / STYLES[model] / "model.safetensors").is_file():
        pytest.skip("the shipped models are not there")
    outcome = command(
        f"model={model}", "evaluate=perplexity", "data.samples=4", "data.limit_windows=4", "data.seqlen=128",
        "device=cpu", "tracker=jsonl", "save_model=false", f"hydra.run.dir={tmp_path}/run",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    metrics = json.loads((tmp_path / "run" / "record.json").read_text())["metrics"]
    assert 1 < metrics["dense/perplexity"] < 5000
    assert metrics["dense/perplexity"] != metrics["evaluate/perplexity"]
    assert metrics["prune/sparsity"] == pytest.approx(0.5, abs=1e-4)


def test_its_version_is_its_own(spawn):
    outcome = spawn("--version")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.startswith("prune-lab 0.") and f"torch {torch.__version__}" in outcome.out
    assert outcome.out.count("\n") == 1
