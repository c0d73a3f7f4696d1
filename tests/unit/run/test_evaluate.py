"""The stages that measure: what they take from earlier runs, and what they accept of an evaluation."""

import logging

import pytest
import torch

from prune_lab.errors import RunFailed
from prune_lab.evaluation.evaluation import Evaluation, Scores
from prune_lab.evaluation.suite import Suite
from prune_lab.run.runner import execute
from prune_lab.run.stages.evaluate import Evaluate, EvaluateDense
from prune_lab.run.state import RunState


class Returning(Evaluation):
    """Returns what it was given."""

    def __init__(self, value):
        self.value = value

    def __call__(self, subject):
        return self.value


@pytest.fixture
def run(tiny_model, tmp_path):
    return RunState(tiny_model("llama"), None, torch.device("cpu"), tmp_path, seed=0)


@pytest.mark.parametrize(("setting", "kept"), [("skip_finished=true", True), ("skip_finished=false", False)])
def test_kept_scores_are_taken_unless_everything_is_to_run_again(
    configured, local_overrides, tmp_path, caplog, setting, kept
):
    config = configured(*local_overrides, "stages=[dense]", setting)
    with caplog.at_level(logging.INFO):
        first, second = (execute(config, tmp_path / name) for name in "ab")
    assert ("kept from an earlier run" in caplog.text) == kept
    assert first["metrics"]["dense/perplexity"] == second["metrics"]["dense/perplexity"]


@pytest.mark.parametrize("stage", [Evaluate, EvaluateDense])
@pytest.mark.parametrize("kind", [lambda part: part, lambda part: Suite(mine=part)])
def test_an_evaluation_that_returns_no_scores_is_told_so(run, stage, kind):
    with pytest.raises(RunFailed, match=r"the evaluation Returning returned a dict, not Scores"):
        stage(kind(Returning({"perplexity": 3.0})))(run)


@pytest.mark.parametrize(
    "scores",
    [
        Scores({"a": "many"}),
        Scores({"a": None}),
        Scores([1]),
        Scores({}, {"a": torch.ones(1)}),
        Scores({}, {1j: 2}),
        Scores({}, {}, {"continuations": [{1j: 2}]}),
    ],
)
def test_scores_that_no_record_can_hold_are_told_before_anything_is_written(run, scores):
    with pytest.raises(RunFailed, match="the evaluation Returning returned scores that no record can hold"):
        Evaluate(Returning(scores))(run)


def test_numbers_of_other_libraries_become_pythons(run):
    metrics = Evaluate(Returning(Scores({"a": torch.tensor(2.5), "b": 3})))(run)
    assert metrics == {"a": 2.5, "b": 3.0} and all(type(value) is float for value in metrics.values())


@pytest.mark.parametrize(("stage", "name"), [(Evaluate, "continuations"), (EvaluateDense, "continuations_dense")])
def test_texts_go_into_the_run_folder_also_those_that_were_kept(run, stage, name, monkeypatch):
    evaluation = Returning(Scores({"a": 1.0}, {}, {"continuations": [{"prompt": "ä", "continuation": "b\n"}]}))
    monkeypatch.setattr(Returning, "key", lambda *_: {"key": "k"})
    for _ in range(2):
        stage(evaluation)(run)
        file = run.folder / f"{name}.jsonl"
        assert file.read_text(encoding="utf-8") == '{"prompt": "ä", "continuation": "b\\n"}\n'
        file.unlink()


def test_texts_of_an_unknown_kind_are_told(run):
    with pytest.raises(RunFailed, match=r"texts of the kind 'poems'.*kinds are generations, continuations"):
        Evaluate(Returning(Scores({"a": 1.0}, {}, {"poems": []})))(run)


@pytest.mark.parametrize(("stage", "name"), [(Evaluate, "lm_eval"), (EvaluateDense, "lm_eval_dense")])
def test_files_go_into_the_run_folder_also_those_that_were_kept(run, stage, name, monkeypatch):
    evaluation = Returning(Scores({"a": 1.0}, files={"lm_eval/model/results.json": "{}"}))
    monkeypatch.setattr(Returning, "key", lambda *_: {"key": f"files {name}"})
    for _ in range(2):
        stage(evaluation)(run)
        assert [path.name for path in (run.folder / name / "model").iterdir()] == ["results.json"]
        (run.folder / name / "model" / "results.json").rename(run.folder / name / "model" / "older.json")


def test_files_in_an_unknown_folder_are_told(run):
    with pytest.raises(RunFailed, match=r"the file poems/a\.txt.*folders are lm_eval"):
        Evaluate(Returning(Scores({"a": 1.0}, files={"poems/a.txt": ""})))(run)
