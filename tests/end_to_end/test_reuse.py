"""What has finished before is not run again."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.utils import get_object

from prune_lab.run import finished_runs as reuse
from tests.end_to_end.conftest import record

ROOT = Path(__file__).parents[2]


def run(command, *job: str, folder: Path) -> bool:
    """Whether the run was taken from an earlier one."""
    outcome = command(*job, f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    assert "perplexity" in outcome.out and str(folder) in outcome.out
    return "finished before" in outcome.out + outcome.err


def test_the_same_run_is_taken_from_before_with_all_it_left(command, job, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert not run(command, *job, folder=first)
    assert run(command, *job, folder=second)
    assert record(second) == record(first)
    names = [path.relative_to(first) for path in first.rglob("*") if ".hydra" not in path.parts]
    assert {str(name) for name in names} >= {"model", "model/model.safetensors", "masks.safetensors", "layers.csv"}
    assert all((second / name).exists() for name in names)
    with (second / "metrics.jsonl").open("a") as file:  # what is added to one is not added to the other
        file.write("more")
    assert "more" not in (first / "metrics.jsonl").read_text()
    assert run(command, *job, "tracker=wandb", "tracker.mode=disabled", folder=tmp_path / "third")  # no other numbers
    assert not run(command, *job, "skip_finished=false", folder=tmp_path / "fourth")


@pytest.mark.parametrize("change", ["setting", "model", "data", "result", "unfinished", "model gone", "code"])
def test_what_is_not_the_same_runs(command, job, tmp_path, monkeypatch, token_files, change):
    first = tmp_path / "first"
    assert not run(command, *job, folder=first)
    if change == "setting":
        job.append("sparsity.level=0.4")
    elif change == "model":
        os.utime(tmp_path / "tiny_opt/model.safetensors", ns=(1, 1))
    elif change == "data":
        os.utime(token_files[0], ns=(1, 1))
    elif change == "result":
        (first / "record.json").unlink()
    elif change == "unfinished":
        (first / "record.json").write_text(json.dumps(record(first) | {"status": "failed"}))
    elif change == "model gone":
        (first / "model").rename(tmp_path / "elsewhere")
    else:
        monkeypatch.setattr("prune_lab.run.finished_runs.source_digest", lambda: "other")
    assert not run(command, *job, folder=tmp_path / "second")


def test_a_folder_that_is_called_as_a_setting_is_none_of_the_files(command, job, tmp_path):
    assert not run(command, *job, folder=tmp_path / "local")  # model=local
    assert run(command, *job, folder=tmp_path / "again")


def test_a_run_without_its_model_serves_those_that_want_none(command, job, tmp_path):
    assert not run(command, *job, "save_model=false", folder=tmp_path / "first")
    assert run(command, *job, "save_model=false", folder=tmp_path / "second")
    assert not run(command, *job, folder=tmp_path / "third")
    assert (tmp_path / "third/model").is_dir()


def test_a_sweep_started_again_runs_what_is_missing_and_sums_up(command, job, tmp_path):
    sweep = ["-m", *job, "sparsity.level=0.3,0.5", "sparsity.layers=null,[0,99]"]
    first = command(*sweep, f"hydra.sweep.dir={tmp_path}/one")
    assert first.status == 2  # of bad input
    again = command(*sweep, f"hydra.sweep.dir={tmp_path}/two")
    assert again.status == 2
    assert (first.out + first.err).count("finished before") == 0
    assert (again.out + again.err).count("finished before") == 2
    for folder in ("one", "two"):
        rows = list(csv.DictReader((tmp_path / folder / "sweep.csv").read_text().splitlines()))
        assert [row["status"] for row in rows] == ["finished", "failed", "finished", "failed"]
        assert "ends beyond the model" in rows[1]["error"] and not rows[0]["error"]
        assert float(rows[0]["objective"]) > 1
        assert "sparsity.level=0.3" in rows[0]["overrides"]
    assert "4 jobs: 2 failed, 2 finished" in again.out


@pytest.mark.slow
def test_two_processes_do_not_run_the_same_at_once(job, tmp_path):
    """The second waits for the first, and takes its result."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    slow = [*job, "finetune=full", "training.steps=40", "stages=[prune,finetune,evaluate]"]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "prune_lab", *slow, f"hydra.run.dir={tmp_path / str(number)}"],
            env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert sum("finished before" in text for text in outputs) == 1
    assert record(tmp_path / "0") == record(tmp_path / "1")


@pytest.mark.slow
def test_a_killed_process_leaves_no_lock(job, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    slow = [*job, "finetune=full", "training.steps=100000", "stages=[prune,finetune]", f"hydra.run.dir={tmp_path}/run"]
    process = subprocess.Popen([sys.executable, "-m", "prune_lab", *slow], env=environment, cwd=tmp_path)
    until = time.monotonic() + 120
    while not (tmp_path / "run/masks.safetensors").is_file() and time.monotonic() < until:
        time.sleep(0.05)
    process.kill()
    process.wait()
    (lock,) = (tmp_path / "cache/runs").rglob("*.lock")
    with reuse.claimed(lock.stem):
        assert reuse.find(lock.stem, tmp_path / "run", model=False) is None


@pytest.mark.parametrize("stage", ["prune", "finetune"])
def test_an_interrupted_run_goes_on_in_another_folder(command, job, tmp_path, monkeypatch, stage):
    """As a sweep that is started again has another name; and ends as one that nothing disturbed."""
    job += ["method=wanda", "stages.prune.save_every=0", "finetune=full", "training.steps=6", "training.save_every=2"]
    assert not run(command, *job, "skip_finished=false", folder=tmp_path / "whole")
    where, nth = {
        "prune": ("prune_lab.pruning.methods.layerwise.LayerwiseMethod.prune_block", 3),
        "finetune": ("prune_lab.training.held_out.HeldOut.measure", 6),
    }[stage]
    module, name = where.rsplit(".", 1)
    original, calls = getattr(get_object(module), name), []

    def interrupt(*arguments: object, **options: object) -> object:
        calls.append(None)
        if len(calls) == nth:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(where, interrupt)
        assert command(*job, f"hydra.run.dir={tmp_path}/first").status == 130
    progress = "blocks/block_0.safetensors" if stage == "prune" else "training/finetune/latest.json"
    assert (tmp_path / "first" / progress).is_file()
    outcome = command(*job, f"hydra.run.dir={tmp_path}/second")
    assert outcome.status == 0, outcome.err
    said = "was pruned before the interruption" if stage == "prune" else "training goes on at step 4"
    assert said in outcome.out + outcome.err
    assert not (tmp_path / "first" / progress).exists()
    whole, second = (record(tmp_path / name)["metrics"] for name in ("whole", "second"))
    assert second["evaluate/perplexity"] == whole["evaluate/perplexity"]
    assert run(command, *job, folder=tmp_path / "third")


def test_a_skipped_run_imports_no_torch(job, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = (
        "import sys; from prune_lab.__main__ import main; sys.argv[0] = 'prune-lab'\n"
        "main()\nassert 'torch' not in sys.modules and 'transformers' not in sys.modules, 'slow imports'"
    )
    for number in range(2):
        arguments = [*job, f"hydra.run.dir={tmp_path / str(number)}"]
        if number == 0:
            command = [sys.executable, "-m", "prune_lab", *arguments]
        else:
            command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
