"""How far a sweep is, by what its jobs leave in their folders."""

import json
import logging
import os

import pytest

from prune_lab.run.own_files import mark_stale
from prune_lab.sweep.jobs import job_in, own_overrides
from prune_lab.sweep.kept import BestModel
from prune_lab.sweep.seeds import over_seeds
from prune_lab.sweep.watch import Watch, watching

METRIC = "evaluate/perplexity"


def leave(folder, value=None, *, status="finished", seconds=10.0, error="", model=b"weights", better="lower"):
    """What a job leaves that took so many seconds."""
    for name in (".hydra", ".prune_lab", "model"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / ".hydra/config.yaml").touch()
    (folder / ".prune_lab/lock").touch()
    (folder / "model/model.safetensors").write_bytes(model)
    record = {
        "status": status,
        "metrics": {} if value is None else {METRIC: value},
        "metric_info": {METRIC: {"label": "perplexity", "better": better}},
        "error": error,
        "files": {"model/model.safetensors": {"bytes": len(model)}, "layers.csv": {"bytes": 3}},
    }
    (folder / "record.json").write_text(json.dumps(record))
    now = (folder / "record.json").stat().st_mtime
    os.utime(folder / ".hydra/config.yaml", (now - seconds, now - seconds))


def has_model(folder):
    return (folder / "model/model.safetensors").exists()


@pytest.fixture
def watch(tmp_path):
    overrides = [["data=c4", f"method={method}", f"seed={seed}"] for method in ("wanda", "ria") for seed in (0, 1)]
    return Watch([tmp_path / str(number) for number in range(4)], overrides, [METRIC])


def test_a_job_that_has_ended_has_one_row(watch, tmp_path, caplog):
    watch._begun -= 30
    with caplog.at_level(logging.INFO):
        watch.look()
        leave(tmp_path / "2", 12.3456)
        watch.look()
        watch.look()
        leave(tmp_path / "0", status="failed", error="RunFailed: no\nmore", seconds=20)
        watch.look()
    assert caplog.messages == [
        "1/4 finished in 10 s: method=ria seed=0, 12.3456; 30 s left",
        "2/4 failed in 20 s: method=wanda seed=0, RunFailed: no; 30 s left",
    ]


def test_what_was_taken_from_earlier_runs_does_not_make_the_rest_look_short(watch, tmp_path, caplog):
    leave(tmp_path / "0", 1.0, seconds=0.5)
    leave(tmp_path / "1", 1.0, seconds=60)
    watch._begun -= 61
    with caplog.at_level(logging.INFO):
        watch.look()
    assert caplog.messages[1].endswith("; 2 min left")


def test_jobs_at_once_share_the_time_that_is_left(watch, tmp_path, caplog):
    for number in range(2):
        leave(tmp_path / str(number), 1.0, seconds=60)
    watch._begun -= 60
    with caplog.at_level(logging.INFO):
        watch.look()
    assert caplog.messages[1].endswith("; 1 min left")


def test_the_record_of_an_earlier_job_is_not_that_of_this_one(watch, tmp_path, caplog):
    leave(tmp_path / "0", 1.0)
    mark_stale(tmp_path / "0")
    with caplog.at_level(logging.INFO):
        watch.look()
    assert not caplog.messages and watch.jobs()[0].status == "no record"


def test_jobs_that_run_elsewhere_are_looked_for_until_all_are_told(watch, tmp_path, caplog):
    with caplog.at_level(logging.INFO), watching(watch, here=False):
        leave(tmp_path / "3", 1.0)
    assert [message[:12] for message in caplog.messages] == ["1/4 finished"]


def test_the_best_model_so_far_stays(tmp_path):
    kept = BestModel(METRIC)
    for name, value in (("a", 5.0), ("b", 3.0), ("c", 4.0), ("d", 3.0)):
        leave(tmp_path / name, value)
        kept.ended(tmp_path / name, job_in(tmp_path / name, "", [METRIC]).record)
    assert [name for name in "abcd" if has_model(tmp_path / name)] == ["b"]
    assert kept.kept == tmp_path / "b" and kept.removed == 3 * len(b"weights")
    record = json.loads((tmp_path / "a/record.json").read_text())
    assert set(record["files"]) == {"layers.csv"} and record["status"] == "finished"
    assert not (tmp_path / "a/model").exists()


def test_more_may_be_better(tmp_path):
    kept = BestModel(METRIC)
    for name, value in (("a", 5.0), ("b", 3.0)):
        leave(tmp_path / name, value, better="higher")
        kept.ended(tmp_path / name, job_in(tmp_path / name, "", [METRIC]).record)
    assert has_model(tmp_path / "a") and not has_model(tmp_path / "b")


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_model_that_is_broken_is_not_the_best(tmp_path, broken):
    kept = BestModel(METRIC)
    for name, value in (("a", broken), ("b", 1.0), ("c", broken)):
        leave(tmp_path / name, value=value)
        kept.ended(tmp_path / name, job_in(tmp_path / name, "", [METRIC]).record)
    assert [has_model(tmp_path / name) for name in "abc"] == [False, True, False]


@pytest.mark.parametrize("what", [{"status": "failed"}, {"value": None}, {"better": None}])
def test_what_cannot_be_compared_stays(tmp_path, what):
    kept = BestModel(METRIC)
    for name, changed in (("a", {}), ("b", what)):
        leave(tmp_path / name, **({"value": 1.0} | changed))
        kept.ended(tmp_path / name, job_in(tmp_path / name, "", [METRIC]).record)
    assert has_model(tmp_path / "a") and has_model(tmp_path / "b")


def test_what_another_sweep_has_written_stays(tmp_path):
    leave(tmp_path / "a", 5.0)
    watch = Watch([tmp_path / "a", tmp_path / "b"], [["seed=0"], ["seed=1"]], [METRIC], BestModel(METRIC))
    leave(tmp_path / "b", 3.0)
    watch.look()
    assert has_model(tmp_path / "a") and has_model(tmp_path / "b")


def test_files_of_others_in_a_folder_of_a_model_stay(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "model.safetensors").write_bytes(b"weights")
    kept = BestModel(METRIC)
    leave(tmp_path / "best", 1.0)
    kept.ended(tmp_path / "best", job_in(tmp_path / "best", "", [METRIC]).record)
    for name in ("notes", "changed", "linked", "led away"):
        leave(tmp_path / name, 2.0)
    (tmp_path / "notes/model/notes.txt").write_text("mine")
    (tmp_path / "changed/model/model.safetensors").write_bytes(b"my own weights")
    (tmp_path / "linked/model/model.safetensors").unlink()
    (tmp_path / "linked/model/model.safetensors").symlink_to(outside / "model.safetensors")
    (tmp_path / "led away/model/model.safetensors").unlink()
    (tmp_path / "led away/model").rmdir()
    (tmp_path / "led away/model").symlink_to(outside)
    for name in ("notes", "changed", "linked", "led away"):
        kept.ended(tmp_path / name, job_in(tmp_path / name, "", [METRIC]).record)
    assert (tmp_path / "notes/model/notes.txt").exists() and not has_model(tmp_path / "notes")
    assert has_model(tmp_path / "changed") and has_model(tmp_path / "linked") and has_model(tmp_path / "led away")
    assert (outside / "model.safetensors").read_bytes() == b"weights"


def jobs_of(tmp_path, overrides, values):
    for number, value in enumerate(values):
        leave(tmp_path / str(number), value)
    own = own_overrides(overrides)
    return [job_in(tmp_path / str(number), each, [METRIC]) for number, each in enumerate(own)]


def test_jobs_that_differ_by_their_seed_have_a_mean_and_a_spread(tmp_path):
    overrides = [[f"method={method}", f"seed={seed}"] for method in ("wanda", "ria") for seed in (0, 1, 2)]
    first, second = over_seeds(jobs_of(tmp_path, overrides, [1.0, 2.0, 3.0, 5.0, 5.0, 5.0]))
    assert (first.settings, first.metric, first.seeds) == ("method=wanda", METRIC, 3)
    assert (first.mean, first.deviation) == pytest.approx((2.0, 1.0))
    assert (second.mean, second.deviation) == (5.0, 0.0)


def test_without_several_seeds_there_is_nothing_to_tell(tmp_path):
    assert over_seeds(jobs_of(tmp_path, [["method=wanda", "seed=0"], ["method=ria", "seed=1"]], [1.0, 2.0])) == []
    assert over_seeds(jobs_of(tmp_path, [["method=wanda"], ["method=ria"]], [1.0, 2.0])) == []
