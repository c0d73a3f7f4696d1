"""Pruning and training in turns."""

import csv
import json

import pytest
import torch

import prune_lab

STAGES = "stages=[iterate,evaluate,save]"


def run(command, folder, *job):
    outcome = command(*job, STAGES, "training.steps=4", "finetune=full", f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    return json.loads((folder / "record.json").read_text())


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "random"])
def test_sparsity_grows_along_the_path_and_stays(command, local_overrides, tmp_path, method):
    record = run(command, tmp_path / "run", *local_overrides, f"method={method}", "sparsity.level=0.75")
    assert record["protocol"]["iterate"]["levels"] == pytest.approx([0.75 * share for share in (19 / 27, 26 / 27, 1)])
    rows = list(csv.DictReader((tmp_path / "run" / "rounds.csv").read_text().splitlines()))
    assert [float(row["sparsity"]) for row in rows] == pytest.approx(record["protocol"]["iterate"]["levels"], abs=0.03)
    metrics = record["metrics"]
    assert metrics["iterate/sparsity_after"] == metrics["iterate/sparsity_before"] == pytest.approx(0.75, abs=0.03)
    assert metrics["iterate/perplexity_round_3"] == pytest.approx(metrics["evaluate/perplexity"])
    assert float(rows[0]["perplexity_tuned"]) != float(rows[0]["perplexity_pruned"])


def test_weights_are_rewound_under_the_mask(command, local_overrides, tmp_path):
    """With a learning rate of 0 nothing but the mask is left of a run that rewinds a method which changes weights."""
    folder = tmp_path / "run"
    job = ("method=sparsegpt", "stages.iterate.rewind=weights", "training.lr=0", "stages.iterate.score=false")
    record = run(command, folder, *local_overrides, *job)
    dense = prune_lab.load(str(next(o for o in local_overrides if o.startswith("model.path=")).partition("=")[2]))
    pruned = prune_lab.load(str(folder / "model"))
    for old, new in zip(dense.linears, pruned.linears, strict=True):
        kept = new.weight != 0
        assert 0.4 < kept.float().mean() < 0.6
        assert torch.equal(new.weight[kept], old.weight[kept])
    assert "iterate/perplexity_round_1" not in record["metrics"]


def test_biases_that_a_method_gives_are_rewound_to_none(command, model_folder, token_files, tmp_path):
    job = ["model=local", f"model.path={model_folder('llama')}", "data=tokens", f"data.calibration={token_files[0]}",
           f"data.evaluation={token_files[1]}", "evaluate=perplexity", "tracker=jsonl", "device=cpu"]  # fmt: skip
    record = run(command, tmp_path / "run", *job, "method=flap", "stages.iterate.rewind=weights", "training.lr=0")
    assert record["status"] == "finished"


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (["method=gum", "finetune=full"], "prunes step by step while it trains"),
        (["sparsity=nm_2of4", "finetune=full"], "has no levels in between"),
        (["finetune=none"], "finetune=none trains nothing"),
        (["finetune=lora", "finetune.merge=false"], "later rounds cannot prune"),
        (["finetune=full", "stages.iterate.path=square"], "allowed: linear, cubic"),
        (["finetune=full", "stages.iterate.rounds=0"], "stages.iterate.rounds=0"),
    ],
)
def test_what_cannot_be_iterated_is_refused(command, local_overrides, tmp_path, job, words):
    outcome = command(*local_overrides, *job, STAGES, f"hydra.run.dir={tmp_path}/run")
    assert outcome.status == 2
    assert words in outcome.err
