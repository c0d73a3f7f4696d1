"""Results and answers are written as the harness' own front end writes them."""

import json
import os

import lm_eval
import pytest
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from prune_lab.errors import RunFailed
from prune_lab.evaluation.harness import ZeroShot
from prune_lab.evaluation.suite import merge
from tests.unit.evaluation.conftest import QUESTIONS

LEFT_OUT = {"pretty_env_info", "upper_git_hash"}
OF_ITS_OWN_MODEL = {"batch_sizes", "gen_kwargs", "model_revision", "model_sha", "use_cache"}


@pytest.fixture
def folder(task_folder):
    """Two tasks: one with choices, and one whose perplexity has no formula for its standard error."""
    task_folder("proverbs", QUESTIONS)
    return task_folder(
        "endings",
        QUESTIONS,
        output_type="loglikelihood",
        doc_to_choice=None,
        doc_to_target="{{' ' + choices[gold]}}",
        metric_list=[{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}],
    )


def parsed(files):
    """The results, and the answers by task."""
    [results] = [json.loads(text) for path, text in files.items() if "/results_" in path]
    samples = {path.rpartition("/samples_")[2]: text for path, text in files.items() if "/samples_" in path}
    return results, {
        name.partition("_")[0]: [json.loads(line) for line in text.splitlines()] for name, text in samples.items()
    }


def close(values):
    """Numbers, also those in text, to six digits."""
    if isinstance(values, dict):
        return {name: close(value) for name, value in values.items()}
    if isinstance(values, list):
        return [close(value) for value in values]
    try:
        return f"{float(values):.5g}"
    except (TypeError, ValueError):
        return values


def test_the_files_are_those_of_the_harness(subject, folder, tmp_path):
    subject.model.hf.save_pretrained(tmp_path / "model")
    subject.model.tokenizer.save_pretrained(tmp_path / "model")
    tracker = EvaluationTracker(output_path=str(tmp_path / "theirs"))
    theirs = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(tmp_path / "model"), device="cpu", dtype="float32"),
        tasks=["proverbs", "endings"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        limit=4,
        bootstrap_iters=2,
        evaluation_tracker=tracker,
    )
    samples = theirs.pop("samples")
    tracker.save_results_aggregated(results=theirs, samples=samples)
    for name, answers in samples.items():
        tracker.save_results_samples(task_name=name, samples=answers)
    written = {str(path): path.read_text() for path in (tmp_path / "theirs").rglob("*.json*")}
    expected, answers = parsed(written)
    found, given = parsed(
        ZeroShot(tasks=["proverbs", "endings"], include_path=str(folder), limit=4, log_samples=True)(subject).files
    )
    assert close(given) == close(answers)
    assert set(expected) - set(found) == LEFT_OUT
    assert set(expected["config"]) - set(found["config"]) == OF_ITS_OWN_MODEL
    for part in ("results", "configs", "versions", "n-shot", "n-samples", "higher_is_better", "task_hashes"):
        mine, own = (close(each[part]) for each in (found, expected))
        if part == "results":
            assert float(mine["endings"].pop("perplexity_stderr,none")) > 0
            own["endings"].pop("perplexity_stderr,none")
        assert mine == own, part


def test_metrics_are_those_of_a_run_without_files(subject, folder, capfd):
    before = dict(os.environ)
    plain, logged = (
        ZeroShot(tasks=["proverbs", "endings"], include_path=str(folder), log_samples=log)(subject)
        for log in (False, True)
    )
    assert (plain.metrics, plain.protocol, plain.files) == (logged.metrics, logged.protocol, {})
    assert len(merge({"a": plain, "b": logged}).files) == 3
    assert (capfd.readouterr(), dict(os.environ)) == (("", ""), before)


def test_files_that_could_not_be_written_stop_the_run(subject, folder, monkeypatch):
    monkeypatch.setattr(EvaluationTracker, "save_results_samples", lambda self, task_name, samples: None)
    with pytest.raises(RunFailed, match="could not write its results"):
        ZeroShot(tasks=["proverbs"], include_path=str(folder), log_samples=True)(subject)
