import logging

import pytest

from prune_lab.errors import BadInput
from prune_lab.run.tracking.jsonl import JsonlTracker
from prune_lab.run.tracking.tracker import RunInfo
from prune_lab.run.tracking.trackers import Trackers
from prune_lab.utils.secrets import without_secrets


class Fake:
    """Notes what it is asked, and raises when asked what ``broken`` names."""

    def __init__(self, broken: str = "", error: Exception | None = None) -> None:
        self.broken, self.error, self.calls = broken, error or OSError("no space left"), []

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call == self.broken:
            raise self.error

    def prepare(self):
        self._note("prepare")

    def start(self, run):
        self._note("start")

    def log(self, stage, metrics):
        self._note("log")

    def series(self, stage, step, numbers):
        self._note("series")

    def table(self, name, columns, rows):
        self._note("table")

    def finish(self, summary, *, failed):
        self._note("finish")
        self.failed = failed


def a_run(tracker, folder):
    trackers = Trackers(tracker)
    trackers.start(RunInfo(folder, {}, "toy"))
    trackers.log("dense", {"dense/perplexity": 2.0})
    trackers.table("layers", ["name"], [["a"]])
    trackers.log("prune", {"prune/sparsity": 0.5})
    trackers.finish({}, failed=False)


def lines(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


def test_the_file_is_written_beside_any_tracker(tmp_path):
    fake = Fake()
    a_run(fake, tmp_path)
    assert fake.calls == ["start", "log", "table", "log", "finish"]
    assert len(lines(tmp_path)) == 2


def test_the_file_as_the_tracker_is_written_once(tmp_path):
    a_run(JsonlTracker(), tmp_path)
    assert len(lines(tmp_path)) == 2


def test_a_tracker_that_keeps_failing_is_warned_about_once_and_still_closed(tmp_path, caplog):
    fake = Fake("log")
    with caplog.at_level(logging.WARNING):
        a_run(fake, tmp_path)
    [record] = caplog.records
    assert "Fake" in record.getMessage() and "no space left" in record.getMessage()
    assert fake.calls[-1] == "finish" and not fake.failed
    assert len(lines(tmp_path)) == 2


def test_a_tracker_that_did_not_start_is_asked_nothing_more(tmp_path, caplog):
    fake = Fake("start")
    a_run(fake, tmp_path)
    assert fake.calls == ["start"]
    assert len(caplog.records) == 1


def test_a_failure_while_closing_does_not_harm_the_run(tmp_path):
    a_run(Fake("finish"), tmp_path)


def test_a_mistake_of_the_user_ends_the_run_at_the_start(tmp_path):
    with pytest.raises(BadInput, match="log in"):
        a_run(Fake("start", BadInput("log in first")), tmp_path)


def test_an_interrupt_is_not_swallowed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        a_run(Fake("log", KeyboardInterrupt()), tmp_path)


def test_secrets_are_masked_at_any_depth_and_the_rest_stays():
    config = {
        "model": {"token": "hf_x", "tokenizer": "bytes", "path": None},
        "tracker": [{"api_key": "x", "wandb_api_key": "y", "Password": "z"}],
        "data": {"tokens": 5, "token": 7, "dropped_tokens": "12"},
    }
    assert without_secrets(config) == {
        "model": {"token": "***", "tokenizer": "bytes", "path": None},
        "tracker": [{"api_key": "***", "wandb_api_key": "***", "Password": "***"}],
        "data": {"tokens": 5, "token": 7, "dropped_tokens": "12"},
    }
    assert config["model"]["token"] == "hf_x"
