"""A search is told values on the way, and may end the run."""

import json

import pytest
import torch

from prune_lab.data.samples import Samples
from prune_lab.errors import BadInput, TrialStopped
from prune_lab.run.runner import execute
from prune_lab.run.tracking.jsonl import JsonlTracker
from prune_lab.training.loop import fit, trainable_weights
from prune_lab.training.settings import Training

TUNED = ("method=magnitude", "finetune=full", "training.steps=4", "training.batch_size=2")
HELD_OUT = ("training.eval_samples=2", "training.eval_every=2")


class Told:
    """Remembers what was reported, and stops at a step."""

    def __init__(self, stop_at: int | None = None):
        self.values: dict[int, float] = {}
        self.stop_at = stop_at

    def __call__(self, step: int, value: float) -> None:
        assert step not in self.values
        self.values[step] = value
        if step == self.stop_at:
            raise TrialStopped(f"at step {step}")


def test_every_loss_of_held_out_samples_is_reported(tiny_model, random_tokens):
    told, model = Told(), tiny_model("opt").hf
    with trainable_weights(model):
        progress = fit(
            model,
            Samples(random_tokens(6)),
            Training(steps=4, batch_size=2, eval_samples=2, eval_every=2),
            torch.device("cpu"),
            report=told,
        )
    assert told.values == progress.held_out
    assert list(told.values) == [0, 2, 4]


@pytest.mark.parametrize(
    "job", [TUNED, (*TUNED, "finetune=lora"), ("method=l2_neurons", "training.steps=4", "training.batch_size=2")]
)
def test_every_stage_that_trains_reports(configured, local_overrides, tmp_path, job):
    told = Told()
    execute(configured(*local_overrides, *job, *HELD_OUT), tmp_path / "run", report=told)
    assert list(told.values) == [0, 2, 4]


def test_nothing_is_reported_without_held_out_samples(configured, local_overrides, tmp_path):
    told = Told()
    execute(configured(*local_overrides, *TUNED), tmp_path / "run", report=told)
    assert told.values == {}


def test_rounds_are_reported_in_place_of_the_trainings_inside(configured, local_overrides, tmp_path):
    told, stages = Told(), "stages=[iterate,evaluate]"
    record = execute(configured(*local_overrides, *TUNED, *HELD_OUT, stages), tmp_path / "run", report=told)
    assert told.values == {number: record["metrics"][f"iterate/perplexity_round_{number}"] for number in (1, 2, 3)}


def test_a_run_that_is_stopped_says_so_and_is_no_failure(configured, local_overrides, tmp_path, monkeypatch):
    ended = []
    monkeypatch.setattr(JsonlTracker, "finish", lambda self, summary, *, failed: ended.append(failed))
    config = configured(*local_overrides, *TUNED, *HELD_OUT)
    with pytest.raises(TrialStopped):
        execute(config, tmp_path / "run", report=Told(stop_at=2))
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert (record["status"], record["reason"]) == ("stopped", "at step 2")
    assert "error" not in record
    assert "evaluate/perplexity" not in record["metrics"]
    assert ended == [False]


def test_reporting_changes_neither_numbers_nor_key(configured, local_overrides, tmp_path):
    jobs = ((None, "one"), (Told(), "two"))
    one, two = (
        execute(configured(*local_overrides, *TUNED, *HELD_OUT), tmp_path / name, report=report)
        for report, name in jobs
    )
    assert one["key"] == two["key"]
    assert one["metrics"]["evaluate/perplexity"] == two["metrics"]["evaluate/perplexity"]


@pytest.mark.parametrize(
    "objective",
    ["[]", "[a,a]", "3", "null", "[a,2]", "perplexity", "evalute/perplexity", "[prune/sparsity,prune/]"],
)
def test_an_objective_is_a_metric_of_a_stage_or_several(configured, objective):
    with pytest.raises(BadInput, match=r"objective=.* is not allowed"):
        configured(f"objective={objective}")
    configured("objective=[evaluate/perplexity,prune/seconds]")
