import json
import math
from datetime import datetime, timedelta

import numpy as np
import pytest

from prune_lab.run.tracking.jsonl import JsonlTracker
from prune_lab.run.tracking.tracker import RunInfo


@pytest.fixture
def tracker(tmp_path):
    tracker = JsonlTracker()
    tracker.start(RunInfo(tmp_path, {}, "toy"))
    return tracker


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_stage_is_a_line_as_soon_as_it_is_logged(tracker, tmp_path):
    assert lines(tmp_path) == []
    tracker.log("dense", {"dense/perplexity": 12.5})
    [line] = lines(tmp_path)
    assert line.pop("time").endswith("+00:00")
    assert line == {"stage": "dense", "dense/perplexity": 12.5}
    tracker.log("prune", {"prune/sparsity": 0.5, "prune/seconds": 2})
    assert [line["stage"] for line in lines(tmp_path)] == ["dense", "prune"]


def test_times_are_utc_and_do_not_run_backwards(tracker, tmp_path):
    tracker.log("dense", {})
    tracker.log("prune", {})
    first, second = [datetime.fromisoformat(line["time"]) for line in lines(tmp_path)]
    assert first.utcoffset() == timedelta(0)
    assert first <= second


def test_numbers_of_numpy_and_infinity_survive(tracker, tmp_path):
    tracker.log("evaluate", {"evaluate/perplexity": math.inf, "evaluate/accuracy": np.float32(0.25)})
    [line] = lines(tmp_path)
    assert line["evaluate/perplexity"] == math.inf
    assert line["evaluate/accuracy"] == 0.25


def test_a_second_run_in_the_folder_keeps_the_lines_of_the_first(tracker, tmp_path):
    tracker.log("dense", {})
    tracker.finish({}, failed=True)
    again = JsonlTracker()
    again.start(RunInfo(tmp_path, {}, "toy"))
    again.log("dense", {})
    assert len(lines(tmp_path)) == 2


def test_a_tracker_that_was_not_started_says_so():
    with pytest.raises(RuntimeError, match="before start"):
        JsonlTracker().log("dense", {})
