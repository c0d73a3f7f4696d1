"""Studies that are interrupted, killed, or meet failing jobs: nothing is lost, and nothing runs twice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import Search, bowl
search = Search(Path(sys.argv[2]))
def function(values):
    if len(search.launched) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return bowl(values)
search.function = function
search.run()
"""


class Interrupted(BaseException):
    """Such as Ctrl-C."""


@pytest.mark.parametrize("cut", [1, 12])
@pytest.mark.parametrize("error", [Interrupted, RuntimeError])
def test_what_was_interrupted_is_asked_again_and_nothing_else_changes(search, cut, error):
    whole, cut_off = search("whole"), search("cut")
    whole.run(n_trials=14)
    launch = cut_off.launch

    def fail_once(batch, first):
        if len(cut_off.batches) == cut:
            cut_off.batches.append(0)
            raise error("the launcher is gone")
        return launch(batch, first)

    cut_off.launch = fail_once
    with pytest.raises(error):
        cut_off.run(n_trials=14)
    assert [row["number"] for row in cut_off.rows("interrupted")] == [str(cut)]
    assert "the process that ran it ended" in cut_off.rows("interrupted")[0]["message"]
    cut_off.run(n_trials=14)
    assert cut_off.results() == whole.results()


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_batch_that_was_interrupted_is_asked_again_as_a_whole(search, jobs):
    it = search()
    launch, asked = it.launch, []

    def fail(batch, first):
        asked.extend([dict(line.split("=", 1) for line in overrides)["x"] for overrides in batch])
        raise Interrupted

    it.launch = fail
    with pytest.raises(Interrupted):
        it.run(n_trials=jobs, n_jobs=jobs)
    it.launch = launch
    it.run(n_trials=jobs, n_jobs=jobs)
    assert [row["x"] for row in it.rows("complete")] == asked
    assert it.batches == [jobs]


def test_of_a_batch_that_was_interrupted_what_had_ended_is_kept(search):
    it = search()
    launch = it.launch

    def end_first(batch, first):
        (it.folder / "0").mkdir()
        (it.folder / "0" / "record.json").write_text(json.dumps({"status": "finished", "metrics": {"loss": 0.25}}))
        raise Interrupted

    it.launch = end_first
    with pytest.raises(Interrupted):
        it.run(n_trials=3, n_jobs=3)
    assert [row["state"] for row in it.rows()] == ["complete", "interrupted", "interrupted", "waiting", "waiting"]
    it.launch = launch
    it.run(n_trials=3, n_jobs=3)
    assert it.batches == [2]


def test_a_killed_process_loses_nothing(search):
    whole, killed = search("whole"), search("killed")
    whole.run()
    for after in (4, 3):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(killed.folder), str(after)], check=False
        )
        assert done.returncode == -9
    assert len(killed.rows("complete")) == 5
    killed.run()
    assert [row["state"] for row in killed.rows()].count("interrupted") == 2
    assert killed.results() == whole.results()


def test_a_trial_that_had_ended_when_its_process_was_killed_is_not_run_again(search):
    it = search()
    with it.opened(n_trials=1) as study:
        trial = study.ask()
        trial.set_user_attr("folder", str(it.folder / "0"))
    (it.folder / "0").mkdir()
    (it.folder / "0" / "record.json").write_text(json.dumps({"status": "finished", "metrics": {"loss": 0.25}}))
    it.run(n_trials=1)
    assert it.launched == []
    assert [(row["state"], row["loss"]) for row in it.rows()] == [("complete", "0.25")]


def test_a_record_of_an_earlier_study_is_not_taken_for_a_result(search):
    it = search()
    (it.folder / "0").mkdir()
    (it.folder / "0" / "record.json").write_text(json.dumps({"status": "finished", "metrics": {"loss": 0.25}}))
    it.launch = lambda batch, first: (_ for _ in ()).throw(Interrupted)
    with pytest.raises(Interrupted):
        it.run(n_trials=1)
    assert json.loads((it.folder / "0" / "record.json").read_text())["metrics"] == {"loss": 0.25}  # nobody's is removed
    with it.opened() as study:
        assert [trial.state.name for trial in study.trials if trial.values] == []


def test_values_that_were_interrupted_twice_wait_once(search):
    it = search()
    with it.opened() as study:
        study.ask()
        trial = study.trials[0]
        study.optuna.enqueue_trial(trial.params, {"asked": trial.params, "repeats": 0})  # killed before it was marked
        study.repeat_running()
        assert [each.state.name for each in study.trials] == ["FAIL", "WAITING"]


@pytest.mark.parametrize("missing", [{}, {"x": 0.5}])
def test_a_trial_without_all_its_values_is_sampled_again(search, missing):
    """Killed between two values: the sampler gives the same, so that nothing has to be kept."""
    whole, it = search("whole"), search("cut")
    whole.run(n_trials=2, sampler={"name": "random"})
    with it.opened(sampler={"name": "random"}) as study:
        trial = study.optuna.ask()
        for name in missing:
            trial.suggest_float(name, -2, 2)
    it.run(n_trials=2, sampler={"name": "random"})
    assert it.results() == whole.results()
