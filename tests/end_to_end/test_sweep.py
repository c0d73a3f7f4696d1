"""What a sweep says while it runs and at its end, and which models it keeps."""

import csv
import json
import re

import pytest


@pytest.fixture
def sweep(local_overrides, tmp_path):
    return [
        "-m", *local_overrides, "method=random,magnitude", "seed=0,1", "data.samples=2",
        f"hydra.sweep.dir={tmp_path}/sweep",
    ]  # fmt: skip


def models(tmp_path):
    return [path.parent.name for path in sorted(tmp_path.glob("sweep/*/model"))]


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_sweep_says_how_far_it_is_and_what_came_out_over_seeds(command, sweep, tmp_path):
    outcome = command(*sweep)
    assert outcome.status == 0, outcome.err
    told = re.findall(r"(\d/4) finished in \d+ s: method=(\w+) seed=(\d), [\d.e+]+(; \d+ s left)?", outcome.err)
    assert [row[:3] for row in told] == [
        ("1/4", "random", "0"), ("2/4", "random", "1"), ("3/4", "magnitude", "0"), ("4/4", "magnitude", "1"),
    ]  # fmt: skip
    assert [bool(row[3]) for row in told] == [True, True, True, False]
    assert "everything about this run" not in outcome.out  # a row is all that a job has
    values = [float(row["objective"]) for row in rows(tmp_path / "sweep/sweep.csv")]
    found = rows(tmp_path / "sweep/seeds.csv")
    assert [(row["settings"], row["seeds"]) for row in found] == [("method=random", "2"), ("method=magnitude", "2")]
    assert float(found[0]["mean"]) == pytest.approx(sum(values[:2]) / 2, rel=1e-5)
    assert float(found[0]["standard_deviation"]) == pytest.approx(abs(values[0] - values[1]) / 2**0.5, rel=1e-3)
    assert "keep_models=best keeps one" in outcome.out and models(tmp_path) == ["0", "1", "2", "3"]


def test_the_best_model_is_kept_and_the_results_of_the_others_are_taken_again(command, sweep, tmp_path):
    assert command(*sweep, "keep_models=best", "skip_finished=true").status == 0
    values = {row["job"]: float(row["objective"]) for row in rows(tmp_path / "sweep/sweep.csv")}
    best = min(values, key=values.__getitem__)
    assert models(tmp_path) == [best]
    again = command(*sweep[:-1], "keep_models=best", "skip_finished=true", f"hydra.sweep.dir={tmp_path}/again")
    assert again.status == 0 and again.err.count("finished before") == 4
    assert [path.parent.name for path in tmp_path.glob("again/*/model")] == [best] and models(tmp_path) == [best]


def test_no_model_is_kept_where_none_is_wanted(command, sweep, tmp_path):
    assert command(*sweep, "keep_models=none").status == 0
    assert models(tmp_path) == [] and len(list(tmp_path.glob("sweep/*/masks.safetensors"))) == 4
    record = json.loads((tmp_path / "sweep/0/record.json").read_text())
    assert record["status"] == "finished"


def test_a_single_run_keeps_its_model_whatever_sweeps_keep(command, local_overrides, tmp_path):
    job = [*local_overrides, "method=magnitude", "keep_models=none", f"hydra.run.dir={tmp_path}/run"]
    assert command(*job).status == 0 and (tmp_path / "run/model").is_dir()


def test_another_choice_is_refused(command, sweep):
    outcome = command(*sweep, "keep_models=some")
    assert outcome.status == 2 and "keep_models='some' is not allowed; allowed: all, best, none" in outcome.err
