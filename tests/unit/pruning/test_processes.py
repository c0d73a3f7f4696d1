"""Training in two processes is training in one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prune_lab.data.samples import Samples
from prune_lab.models.load import Checkpoint
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.gum import GUM
from prune_lab.pruning.target import Target
from prune_lab.run.runner import execute
from prune_lab.training.settings import Training
from tests.processes import in_two_processes


def train(folder: Path, out: Path, states: Path | None = None) -> None:
    """Prunes the folder's model and writes its weights and masks."""
    torch.set_num_threads(1)
    model = Checkpoint(str(folder)).load()
    tokens = torch.randint(64, (12, 16), generator=torch.Generator().manual_seed(0))
    samples = Samples(tokens, torch.tensor([16, 5, 9] * 4), torch.tensor([0, 2, 4, 1] * 3))
    training = Training(steps=12, batch_size=4, lr=1e-3, save_every=5 if states else 0)
    target, calibration = Target("neurons", 0.5), Calibration(tokens)
    context = PruningContext(model, target, calibration, training=training, samples=lambda: samples, folder=states)
    result = GUM(lr=0.1).prune(context)
    if os.environ.get("RANK", "0") == "0":
        torch.save(
            {"weights": model.hf.state_dict(), "masks": dict(result.masks), "losses": result.progress.losses}, out
        )


@pytest.mark.slow
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_two_processes_train_as_one(model_folder, tmp_path, family):
    """Samples of many lengths, GUM's averages and the gradients of scores are shared."""
    folder = model_folder(family)
    train(folder, tmp_path / "one.pt")
    in_two_processes(__file__, str(folder), str(tmp_path / "two.pt"), str(tmp_path / "states"))
    one, two = torch.load(tmp_path / "one.pt"), torch.load(tmp_path / "two.pt")
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    for name, mask in one["masks"].items():
        assert torch.equal(mask, two["masks"][name])
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, rtol=1e-3, atol=1e-4)
    assert not (tmp_path / "states").exists()


@pytest.mark.slow
def test_the_command_in_two_processes_leaves_one_run_folder(model_folder, token_files, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNE_LAB_CACHE", str(tmp_path / "cache"))
    calibration, evaluation = token_files
    job = [
        "-m", "prune_lab", "model=local", f"model.path={model_folder('opt')}", "data=tokens", "method=gum",
        f"data.calibration={calibration}", f"data.evaluation={evaluation}", "evaluate=perplexity", "device=cpu",
        "stages=[prune,evaluate]", "training.steps=6", "training.batch_size=2", "training.save_every=2",
    ]  # fmt: skip
    subprocess.run([sys.executable, *job, f"hydra.run.dir={tmp_path}/one"], check=True, capture_output=True)
    first, second = in_two_processes(*job, f"hydra.run.dir={tmp_path}/two")
    assert "perplexity" in first and second == ""
    records = [json.loads((tmp_path / name / "record.json").read_text()) for name in ("one", "two")]
    assert records[0]["status"] == records[1]["status"] == "finished"
    perplexities = [record["metrics"]["evaluate/perplexity"] for record in records]
    assert perplexities[1] == pytest.approx(perplexities[0], rel=1e-4)
    assert not (tmp_path / "two" / "training" / "prune").exists()


@pytest.mark.slow
def test_the_command_in_two_processes_prunes_and_measures_as_one(configured, model_folder, token_files, tmp_path):
    """Perplexity is that of one process, also of the dense model, which the store has kept."""
    calibration, evaluation = token_files
    job = [
        "model=local", f"model.path={model_folder('llama')}", "data=tokens", "method=sparsegpt", "tracker=jsonl",
        f"data.calibration={calibration}", f"data.evaluation={evaluation}", "evaluate=perplexity", "device=cpu",
        "stages=[dense,prune,evaluate]", "save_model=false",
    ]  # fmt: skip
    one = execute(configured(*job), tmp_path / "one")
    first, second = in_two_processes("-m", "prune_lab", *job, f"hydra.run.dir={tmp_path}/two")
    assert "perplexity" in first and second == ""
    two = json.loads((tmp_path / "two" / "record.json").read_text())
    assert two["protocol"]["processes"] == 2 and "processes" not in one["protocol"]
    for name in ("dense/perplexity", "evaluate/perplexity", "prune/sparsity"):
        assert two["metrics"][name] == pytest.approx(one["metrics"][name], rel=1e-6), name
    masks = [load_file(tmp_path / name / "masks.safetensors") for name in ("one", "two")]
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())


if __name__ == "__main__":
    train(*map(Path, sys.argv[1:]))
