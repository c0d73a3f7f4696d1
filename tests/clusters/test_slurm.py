"""Sweeps on a Slurm that is what Slurm is: jobs fail, are killed and requeued, and the controller goes away."""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.clusters.conftest import numbers, record

pytest.importorskip("submitit", reason="the extra slurm is not installed")
DAMPINGS = ("0.01", "0", "0.02", "0.03", "0.04", "0.05")  # without any, the second job fails
FAILED, REQUEUED, PREEMPTED = 1, 3, 5
JOB = (
    "method=sparsegpt", "data.samples=1", "finetune=full", "training.batch_size=1", "training.save_every=25",
    "stages=[prune,finetune,evaluate,save]",
)  # fmt: skip
SHORT, LONG = 100, 2500  # steps. Slurm leaves a job five seconds to end in; a long one needs more.
SLURM = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1")


def wait_for(what, process: "subprocess.Popen[str]", seconds: float = 300.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            pytest.fail(f"it does not come to that:\n{process.communicate()[0]}")
        time.sleep(0.05)


def array_of(sweep: Path) -> str:
    """The number of the sweep's job array; beside the folders of its jobs, submitit has files of its own there."""
    jobs = (re.fullmatch(r"(\d+)_\d+", path.name) for path in (sweep / ".submitit").iterdir())
    return next(job[1] for job in jobs if job)


def output_of(sweep: Path, number: int) -> str:
    return "".join(path.read_text() for path in (sweep / ".submitit").glob(f"*_{number}/*.err"))


@pytest.mark.slow
def test_a_sweep_survives_what_happens_on_a_cluster(slurm, start, local_overrides, tmp_path):
    cells = [
        [f"method.damping={damping}", f"training.steps={LONG if number in (REQUEUED, PREEMPTED) else SHORT}"]
        for number, damping in enumerate(DAMPINGS)
    ]
    (tmp_path / "cells.json").write_text(json.dumps(cells))
    job = (*local_overrides, *JOB, "hydra/sweeper=cells", f"hydra.sweeper.cells={tmp_path / 'cells.json'}")
    sweep, local = tmp_path / "sweep", tmp_path / "local"
    process = start("cache", "-m", *job, *SLURM, f"hydra.sweep.dir={sweep}")
    wait_for((sweep / f"{REQUEUED}/training/finetune/latest.json").is_file, process)
    subprocess.run(["scontrol", "requeue", f"{array_of(sweep)}_{REQUEUED}"], check=True)  # kills it
    slurm("restart")
    wait_for((sweep / f"{PREEMPTED}/training/finetune/latest.json").is_file, process)
    # What Slurm sends before it preempts. The job is requeued so quickly that scancel finds it gone, and says so.
    subprocess.run(["scancel", "--signal=USR2", f"{array_of(sweep)}_{PREEMPTED}"], check=False)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 1, said
    assert "6 jobs: 1 failed, 5 finished" in said, said
    assert "raise method.damping" in record(sweep / f"{FAILED}")["error"]
    assert "this job is preempted" in output_of(sweep, PREEMPTED)
    for number in (REQUEUED, PREEMPTED):
        assert "training goes on at step" in output_of(sweep, number), output_of(sweep, number)
    here = start("other", "-m", *job, f"hydra.sweep.dir={local}")
    assert here.communicate(timeout=600)[0] is not None and here.returncode == 1
    for number in set(range(len(DAMPINGS))) - {FAILED}:
        assert numbers(sweep / f"{number}") == numbers(local / f"{number}"), number
        saved = [(folder / f"{number}/model/model.safetensors").read_bytes() for folder in (sweep, local)]
        assert saved[0] == saved[1], number
    # Started again, here for a change, nothing that has finished runs again.
    again = start("cache", "-m", *job, f"hydra.sweep.dir={tmp_path / 'again'}")
    said, _ = again.communicate(timeout=600)
    assert again.returncode == 1 and said.count("finished before") == len(DAMPINGS) - 1


@pytest.mark.slow
def test_a_job_that_is_lost_is_told_and_the_others_are_waited_for(slurm, start, local_overrides, tmp_path):
    job = (*local_overrides, *JOB, f"training.steps=100000,{SHORT}", "method.damping=0.01,0.02")
    sweep = tmp_path / "sweep"
    process = start("cache", "-m", *job, *SLURM, f"hydra.sweep.dir={sweep}")
    wait_for((sweep / "0/training/finetune/latest.json").is_file, process)
    subprocess.run(["scancel", f"{array_of(sweep)}_0", f"{array_of(sweep)}_1"], check=True)  # the long ones
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 1, said
    assert re.search(r"Slurm job \d+_0 was lost", said)
    assert "2 finished" in said
    assert [record(sweep / f"{number}")["status"] for number in (2, 3)] == ["finished", "finished"]


def test_without_slurm_the_message_says_what_to_do(start, local_overrides, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    process = start("cache", "-m", *local_overrides, "hydra/launcher=slurm", "seed=0,1")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and "no sbatch here" in said, said
    assert not os.path.exists(tmp_path / "outputs")
