"""``prune-lab -m hydra/sweeper=optuna`` from end to end."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SEARCH = ("-m", "hydra/sweeper=optuna", "save_model=false", "hydra.sweeper.study_name=s")
SPACE = ("sparsity.level=interval(0.1,0.7)", "method=magnitude,wanda")


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def numbers(folder: Path) -> list[tuple[str, ...]]:
    return [
        (row["evaluate/perplexity"], row["sparsity.level"], row["method"])
        for row in rows(folder)
        if row["state"] == "complete"
    ]


def test_a_search_goes_on_where_it_was_and_says_what_is_best(command, local_overrides, tmp_path):
    folder, job = tmp_path / "outputs" / "studies" / "s", (*SEARCH, *local_overrides, *SPACE)
    for trials in (2, 4):
        outcome = command(*job, f"hydra.sweeper.n_trials={trials}")
        assert outcome.status == 0, outcome.err
    assert [row["state"] for row in rows(folder)] == ["complete"] * 4
    for row in rows(folder):
        record = json.loads((folder / row["number"] / "record.json").read_text())
        assert row["folder"] == str(folder / row["number"])
        assert float(row["evaluate/perplexity"]) == record["metrics"]["evaluate/perplexity"]
        assert float(row["sparsity.level"]) == record["config"]["sparsity"]["level"]
        assert "PRUNE_LAB_TRIAL" not in json.dumps(record)
    assert "4 complete" in outcome.out

    best = min(rows(folder), key=lambda row: float(row["evaluate/perplexity"]))
    line = next(line for line in (folder / "study.md").read_text().splitlines() if line.startswith("prune-lab "))
    repeated = command(*shlex.split(line, comments=True)[1:], f"hydra.run.dir={tmp_path}/again")
    assert repeated.status == 0, repeated.err
    again = json.loads((tmp_path / "again" / "record.json").read_text())
    first = json.loads((Path(best["folder"]) / "record.json").read_text())
    assert again["metrics"]["evaluate/perplexity"] == first["metrics"]["evaluate/perplexity"]
    assert again["key"] == first["key"]

    refused = command(*job, "data.samples=3", "hydra.sweeper.n_trials=5")
    assert refused.status == 2
    assert "data.samples is 3, and was" in refused.err
    refused = command(*job, "tracker=wandb", "tracker.mode=disabled", "hydra.sweeper.n_trials=4")
    assert refused.status == 0, refused.err  # that is no other study


def test_defaults_come_first_and_bad_trials_are_stopped_early(command, local_overrides, tmp_path):
    outcome = command(
        *SEARCH, *local_overrides, "method=magnitude", "finetune=full", "training.steps=4", "training.batch_size=2",
        "training.eval_samples=2", "training.eval_every=2", "training.lr=tag(log,interval(1e-4,10))",
        "hydra.sweeper.stop_early={warmup_trials: 1, warmup_steps: 1}", "hydra.sweeper.n_trials=5",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    found = rows(tmp_path / "outputs" / "studies" / "s")
    assert float(found[0]["training.lr"]) == 5e-4
    assert "0 (defaults)" in (tmp_path / "outputs" / "studies" / "s" / "study.md").read_text()
    stopped = [row for row in found if row["state"] == "stopped"]
    assert stopped and all(row["evaluate/perplexity"] == "" for row in stopped)
    for row in found:
        record = json.loads((Path(row["folder"]) / "record.json").read_text())
        assert record["status"] == {"complete": "finished", "stopped": "stopped"}[row["state"]]
        assert ("evaluate/perplexity" in record["metrics"]) == (row["state"] == "complete")
        assert row["message"] == record.get("reason", "")


EXPERIMENT = """# @package _global_
defaults:
  - override /hydra/sweeper: optuna
objective: [evaluate/perplexity, prune/sparsity]
hydra:
  sweeper:
    direction: [minimize, maximize]
    first: null
    params:
      sparsity.level: interval(0.1, 0.9)
      seed: choice(1, 2)
      save_model: false
"""


def test_an_experiment_file_may_hold_a_search_for_two_objectives(command, local_overrides, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(EXPERIMENT)
    outcome = command(
        "-m", "--config-dir", f"{tmp_path}/conf", "experiment=mine", *local_overrides, "method=magnitude", "seed=5",
        "hydra.sweeper.study_name=s", "hydra.sweeper.n_trials=4",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    record = json.loads((tmp_path / "outputs" / "studies" / "s" / "3" / "record.json").read_text())
    assert record["config"]["seed"] == 5  # the command line wins
    assert record["config"]["save_model"] is False
    folder = tmp_path / "outputs" / "studies" / "s"
    highest = max(rows(folder), key=lambda row: float(row["prune/sparsity"]))
    with (folder / "pareto.csv").open() as file:
        assert highest["number"] in {row["number"] for row in csv.DictReader(file)}
    assert {"history.svg", "pareto.svg"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (["seed=1"], "nothing to search"),
        (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0 is not allowed"),
        (["hydra.sweeper.direction=up", "seed=1,2"], "hydra.sweeper.direction=up does not fit"),
        (["objective=[evaluate/a,prune/b]", "hydra.sweeper.stop_early=median", "seed=1,2"], "cannot be stopped early"),
        (["seed=glob(*)"], "glob cannot be searched"),
        (["hydra.sweeper.storage=nosuchbase://x/y", "seed=1,2"], "cannot be opened"),
    ],
)
def test_what_cannot_be_searched_is_refused(command, local_overrides, tmp_path, job, words):
    outcome = command(*SEARCH, *local_overrides, *job)
    assert outcome.status == 2, outcome.err
    assert words in outcome.err
    assert "Traceback" not in outcome.err


def test_several_processes_do_not_search(command, local_overrides, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = command(*SEARCH, *local_overrides, *SPACE)
    assert outcome.status == 2
    assert "does not run in several processes" in outcome.err


def test_without_optuna_the_command_says_what_to_install(command, local_overrides, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("prune_lab.sweep.search.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setitem(sys.modules, "optuna.distributions", None)
    outcome = command(*SEARCH, *local_overrides, *SPACE)
    assert outcome.status == 2
    assert "pip install 'prune-lab[optuna]'" in outcome.err


def test_an_objective_that_is_not_there_fails_its_trials(command, local_overrides, tmp_path):
    outcome = command(*SEARCH, *local_overrides, *SPACE, "objective=evaluate/bleu", "hydra.sweeper.give_up_after=2")
    assert outcome.status == 1
    assert "2 trials failed, the last 2 in a row" in outcome.err
    assert "Error executing job" not in outcome.out + outcome.err  # Hydra's line, without a reason
    failed = rows(tmp_path / "outputs" / "studies" / "s")
    assert [row["state"] for row in failed] == ["failed"] * 2
    assert "objective=evaluate/bleu: not measured; this job measured dense/" in failed[0]["message"]
    assert "evaluate/perplexity" in failed[0]["message"]


@pytest.mark.slow
def test_a_search_that_is_killed_gives_what_it_would_have_given(spawn, local_overrides, tmp_path):
    job = (*SEARCH, *local_overrides, *SPACE, "hydra.sweeper.n_trials=5", "hydra.sweeper.sampler.seed=2")
    outcome = spawn(*job, "hydra.sweeper.study_name=whole")
    assert outcome.status == 0, outcome.err
    folder = tmp_path / "outputs" / "studies" / "s"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-m", "prune_lab", *job],
        cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (folder / "2" / "config.yaml").is_file() and time.monotonic() < deadline:  # the third trial is at work
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(numbers(folder)) == 2
    outcome = spawn(*job)
    assert outcome.status == 0, outcome.err
    assert [row["state"] for row in rows(folder)].count("interrupted") == 1
    assert numbers(folder) == numbers(tmp_path / "outputs" / "studies" / "whole")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["hydra.sweeper.trials=3"], "hydra.sweeper.trials is called hydra.sweeper.n_trials now"),
        (["hydra.sweeper.jobs=3"], "hydra.sweeper.jobs is called hydra.sweeper.n_jobs now"),
        (["hydra.sweeper.study=x"], "hydra.sweeper.study is called hydra.sweeper.study_name now"),
        (["+hydra.sweeper.seed=1"], "hydra.sweeper.seed is called hydra.sweeper.sampler.seed now"),
        (["hydra.sweeper.sampler=random"], "samplers are choices now: hydra/sweeper/sampler=random"),
        (["hydra/sweeper/sampler=motpe"], "choices: cmaes, grid, nsgaii, random, tpe"),
        (["hydra/sweeper/sampler=grid"], "sparsity.level is an interval from 0.1 to 0.7, which has no steps"),
    ],
)
def test_names_of_earlier_versions_are_refused(command, local_overrides, tmp_path, given, words):
    outcome = command(*SEARCH, *local_overrides, *SPACE, *given)
    assert outcome.status == 2, outcome.err
    assert words in outcome.err
    assert not (tmp_path / "outputs").exists()


def test_names_of_earlier_versions_in_a_file_are_refused(command, local_overrides, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    text = EXPERIMENT.replace("    first: null", "    trials: 3\n    seed: 1")
    (tmp_path / "conf" / "experiment" / "old.yaml").write_text(text)
    outcome = command("-m", "--config-dir", f"{tmp_path}/conf", "experiment=old", *local_overrides)
    assert outcome.status == 2
    for old, new in (("trials", "n_trials"), ("seed", "sampler.seed")):
        assert f"hydra.sweeper.{old} is called hydra.sweeper.{new} now" in outcome.err


def test_the_sampler_has_the_seed_of_the_run(command, local_overrides, tmp_path):
    levels = {}
    for name, given in (("a", ["seed=7"]), ("b", ["hydra.sweeper.sampler.seed=7"]), ("c", [])):
        outcome = command(
            *SEARCH[:-1], *local_overrides, "method=magnitude", SPACE[0], "hydra/sweeper/sampler=random", *given,
            f"hydra.sweeper.study_name={name}", "hydra.sweeper.n_trials=2", "hydra.sweeper.first=null",
        )  # fmt: skip
        assert outcome.status == 0, outcome.err
        levels[name] = [row["sparsity.level"] for row in rows(tmp_path / "outputs" / "studies" / name)]
    assert levels["a"] == levels["b"] != levels["c"]
