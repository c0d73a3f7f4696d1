"""Run folders: one command at a time, nobody's files replaced, another run's results set aside."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prune_lab.run.run_folder import claimed
from tests.end_to_end.conftest import record

ROOT = Path(__file__).parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def finish(command, *job: str, folder: Path) -> bool:
    """Whether the result was taken as it was."""
    outcome = command(*job, f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    return "finished before" in outcome.out + outcome.err


DAMAGE = {
    "changed": lambda file: file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1])),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "removed": Path.unlink,
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [("model/model.safetensors", "changed"), ("model/config.json", "removed"), ("masks.safetensors", "cut")],
)
def test_a_result_that_was_changed_is_made_again_and_nothing_of_it_lost(command, job, tmp_path, name, damage):
    folder, file = tmp_path / "run", tmp_path / "run" / name
    assert not finish(command, *job, folder=folder)
    before, times = file.read_bytes(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    DAMAGE[damage](file)
    if file.exists():
        os.utime(file, ns=times)  # as a disk that forgets, not as somebody who writes
    changed = contents(folder / "model")
    outcome = command(*job, f"hydra.run.dir={folder}")
    assert outcome.status == 0 and f"({name} " in outcome.out + outcome.err, outcome.err
    [earlier] = folder.glob("earlier-*")
    assert contents(earlier / "model") == changed
    assert file.read_bytes() == before
    assert finish(command, *job, folder=folder) and finish(command, *job, folder=tmp_path / "other")


def test_two_runs_share_no_file(command, job, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert not finish(command, *job, folder=first)
    assert finish(command, *job, folder=second)
    files = [path for path in second.rglob("*") if path.is_file()]
    assert len(files) > 8 and all(path.stat().st_nlink == 1 for path in files)
    assert record(second)["files"].keys() >= {"model/model.safetensors", "masks.safetensors", "config.yaml"}


def test_another_runs_results_are_set_aside(command, job, tmp_path):
    folder = tmp_path / "run"
    assert not finish(command, *job, folder=folder)
    (folder / "notes.txt").write_text("mine")
    before = record(folder)
    assert not finish(command, *job, "sparsity.level=0.3", "save_model=false", folder=folder)
    assert not (folder / "model").exists() and record(folder)["identity"] != before["identity"]
    [earlier] = folder.glob("earlier-*")
    assert record(earlier) == before and (earlier / "model/model.safetensors").is_file()
    assert (folder / "notes.txt").read_text() == "mine"
    assert not finish(command, *job, "skip_finished=false", "sparsity.level=0.3", folder=folder)
    assert len(list(folder.glob("earlier-*"))) == 2


@pytest.mark.parametrize("how", ["run", "sweep"])
def test_what_the_lab_has_not_written_is_not_touched(command, job, tmp_path, how):
    folder = tmp_path / "mine"
    blocks = (folder / "0" if how == "sweep" else folder) / "blocks"
    blocks.mkdir(parents=True)
    (blocks / "file").write_text("mine")
    where = [f"hydra.run.dir={folder}"] if how == "run" else [f"hydra.sweep.dir={folder}", "seed=0,1", "-m"]
    outcome = command(*job, *where)
    assert outcome.status == 2 and "blocks" in outcome.err and "Traceback" not in outcome.err, outcome.err
    assert list(contents(folder).values()) == [b"mine"]


@pytest.mark.parametrize("name", ["sweep.csv", "multirun.yaml"])
def test_tables_that_no_sweep_has_written_stay(command, job, tmp_path, name):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / name).write_text("mine")
    outcome = command("-m", *job, "seed=0,1", f"hydra.sweep.dir={tmp_path}/sweep")
    assert outcome.status == 2 and name in outcome.err, outcome.err
    assert contents(tmp_path / "sweep") == {name: b"mine"}


@pytest.mark.parametrize("key", ["model.path", "data.calibration"])
def test_an_input_in_the_run_folder_is_refused(command, job, tmp_path, key):
    folder = tmp_path / "tiny_opt" if key == "model.path" else tmp_path
    before = contents(tmp_path)
    more = [f"model.path={ROOT}/prune_lab/reference/reference_opt"] if key != "model.path" else []
    outcome = command(*job, *more, f"hydra.run.dir={folder}")
    assert outcome.status == 2 and f"{key}=" in outcome.err and "run folder" in outcome.err, outcome.err
    assert contents(tmp_path) == before


def test_a_folder_in_use_is_refused_at_once(job, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with claimed(tmp_path / "run"):
        before = contents(tmp_path / "run")
        done = subprocess.run(
            [sys.executable, "-m", "prune_lab", *job, f"hydra.run.dir={tmp_path}/run"],
            env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert contents(tmp_path / "run") == before
    assert done.returncode == 2 and f"process {os.getpid()} on " in done.stderr and "in use" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("subdir", ["x", "${seed}"])
def test_two_jobs_in_one_folder_are_refused_before_any_starts(command, job, tmp_path, subdir):
    where = [f"hydra.sweep.dir={tmp_path}/sweep", f"hydra.sweep.subdir={subdir}"]
    outcome = command("-m", *job, "sparsity.level=0.3,0.5", *where)
    assert outcome.status == 2 and "2 jobs" in outcome.err and "hydra.sweep.subdir" in outcome.err, outcome.err
    assert not list(tmp_path.glob("sweep/*/*"))


def test_the_record_of_an_interrupted_run_says_so(command, job, tmp_path, monkeypatch):
    def interrupts(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("prune_lab.run.stages.evaluate.Evaluate.__call__", interrupts)
        assert command(*job, f"hydra.run.dir={tmp_path}/run").status == 130
    assert record(tmp_path / "run")["error"] == "interrupted"
    assert not finish(command, *job, folder=tmp_path / "run")
    assert "error" not in record(tmp_path / "run")


def test_a_sweep_reports_its_own_jobs_only(command, job, tmp_path):
    where = f"hydra.sweep.dir={tmp_path}/sweep"
    assert command("-m", *job, "sparsity.level=0.3,0.4,0.5", where).status == 0
    outcome = command("-m", *job, "sparsity.level=0.3,7", where)
    assert outcome.status == 2
    rows = list(csv.DictReader((tmp_path / "sweep/sweep.csv").read_text().splitlines()))
    assert [(row["job"], row["status"]) for row in rows] == [("0", "finished"), ("1", "failed")]
    assert not rows[1]["objective"] and "sparsity.level" in rows[1]["error"]
    [earlier] = (tmp_path / "sweep/1").glob("earlier-*")
    assert record(earlier)["status"] == "finished"  # of the sweep before


def test_a_job_that_dies_before_it_begins_is_not_its_predecessor(command, job, tmp_path, monkeypatch):
    where = f"hydra.sweep.dir={tmp_path}/sweep"
    assert command("-m", *job, "sparsity.level=0.3,0.4", where).status == 0

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prune_lab.__main__.run_unless_finished", dies)
    outcome = command("-m", *job, "sparsity.level=0.6,0.7", where)
    assert outcome.status == 130 and "interrupted; the same command, started again, goes on" in outcome.err
    rows = list(csv.DictReader((tmp_path / "sweep/sweep.csv").read_text().splitlines()))
    assert [row["status"] for row in rows] == ["no record", "no record"] and not any(row["objective"] for row in rows)
