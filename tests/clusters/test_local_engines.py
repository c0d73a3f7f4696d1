"""Sweeps on a Ray of this machine, and in processes side by side."""

import json

import pytest

from prune_lab.errors import BadInput
from prune_lab.sweep.launch import gpus
from prune_lab.sweep.launch.gpus import gpus_of
from tests.clusters.conftest import numbers, record

JOB = ("method=magnitude,sparsegpt", "sparsity.level=0.5", "stages=[prune,evaluate,save]")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ray_tasks", "processes"])
def test_jobs_elsewhere_give_what_jobs_here_give(start, local_overrides, tmp_path, engine):
    package = {"ray_tasks": "hydra_plugins.hydra_ray_launcher", "processes": "hydra_plugins.hydra_joblib_launcher"}[
        engine
    ]
    pytest.importorskip(package, reason="the extra is not installed")
    sweep, local = tmp_path / "sweep", tmp_path / "local"
    settings = {"ray_tasks": ["+hydra.launcher.init.num_cpus=2"], "processes": ["hydra.launcher.n_jobs=2"]}[engine]
    job = (*local_overrides, *JOB, "sparsity.layers=null,[0,99]")  # the second of these fails
    process = start("cache", "-m", *job, f"hydra/launcher={engine}", *settings, f"hydra.sweep.dir={sweep}")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 2, said  # of bad input
    assert "4 jobs: 2 failed, 2 finished" in said
    here = start("other", "-m", *job, f"hydra.sweep.dir={local}")
    assert here.communicate(timeout=300) and here.returncode == 2
    for number in (0, 2):
        assert numbers(sweep / f"{number}") == numbers(local / f"{number}")
        saved = [(folder / f"{number}/model/model.safetensors").read_bytes() for folder in (sweep, local)]
        assert saved[0] == saved[1]
    again = start("cache", "-m", *job, f"hydra/launcher={engine}", *settings, f"hydra.sweep.dir={tmp_path / 'again'}")
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 2 and "4 jobs: 2 failed, 2 finished" in said
    assert record(tmp_path / "again/0")["identity"] == record(sweep / "0")["identity"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "plugin"),
    [("joblib", "hydra_plugins.hydra_joblib_launcher"), ("submitit_local", "hydra_plugins.hydra_submitit_launcher")],
)
def test_launchers_of_the_plugins_themselves(start, local_overrides, tmp_path, launcher, plugin):
    """Their settings are classes, which Hydra makes again in the process of a job."""
    pytest.importorskip(plugin, reason="the extra is not installed")
    job = (*local_overrides, "method=magnitude", "stages=[prune]", "save_model=false", f"hydra/launcher={launcher}")
    folders = (f"hydra.sweep.dir={tmp_path / 'sweep'}", "hydra.sweep.subdir=job_${hydra:job.num}")
    process = start("cache", "-m", *job, "seed=0,1", *folders)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "2 jobs: 2 finished" in said, said
    assert {record(tmp_path / f"sweep/job_{number}")["config"]["seed"] for number in (0, 1)} == {0, 1}


@pytest.mark.slow
def test_a_launcher_that_cannot_start_leaves_nothing(start, local_overrides, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra joblib is not installed")
    bad = ("hydra/launcher=joblib", "hydra.launcher.prefer=nosuch", f"hydra.sweep.dir={tmp_path / 'sweeps/one'}")
    process = start("cache", "-m", *local_overrides, "seed=0,1", *bad)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and "prefer=nosuch is not a valid backend hint" in said and "Traceback" not in said
    assert not (tmp_path / "sweeps").exists()


@pytest.mark.slow
def test_each_process_has_a_gpu_of_its_own(start, local_overrides, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra joblib is not installed")
    job = (*local_overrides, "method=magnitude", "stages=[prune]", "save_model=false", "device=cpu")
    launcher = ("hydra/launcher=processes", "hydra.launcher.gpus=[3,5]")
    process = start(
        "cache", "-m", *job, *launcher, "seed=0,1,2,3", "tracker=jsonl", f"hydra.sweep.dir={tmp_path / 'sweep'}"
    )
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    seen = [json.loads((tmp_path / f"sweep/{job}/environment.json").read_text())["visible_gpus"] for job in range(4)]
    assert set(seen) <= {"3", "5"} and len(set(seen)) == 2, seen


def test_gpus_are_those_that_may_be_used(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-1a,-1")
    assert gpus_of(None) == ["2", "GPU-1a"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus_of(None) == []
    assert gpus_of([0, "1"]) == ["0", "1"]
    with pytest.raises(BadInput, match="different GPUs"):
        gpus_of([1, 1])


def test_gpus_are_shared_evenly_and_by_no_more_than_allowed(monkeypatch, tmp_path):
    monkeypatch.setattr(gpus, "_held", [])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert [gpus._take(["3", "5"], 2) for _ in range(4)] == ["3", "5", "3", "5"]  # locks of one process are different
    with pytest.raises(RuntimeError, match=r"have taken the GPUs 3, 5; .* hydra\.launcher\.gpus"):
        gpus._take(["3", "5"], 2)


def test_more_processes_than_the_gpus_take_are_refused(start, local_overrides, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra joblib is not installed")
    launcher = ("hydra/launcher=processes", "hydra.launcher.gpus=[3,5]", "hydra.launcher.n_jobs=3")
    process = start("cache", "-m", *local_overrides, *launcher, "seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in said
    assert "hydra.launcher.n_jobs=3 is not allowed; allowed: at most 2" in said and "processes_per_gpu" in said, said
    assert not (tmp_path / "sweep").exists()
    gpus.check_jobs(6, ["3", "5"], 3)
    gpus.check_jobs(6, [], 1)


@pytest.mark.parametrize(("name", "extra"), [("slurm", "slurm"), ("ray_tasks", "ray"), ("processes", "joblib")])
def test_a_package_that_is_missing_is_named_with_the_remedy(start, local_overrides, tmp_path, name, extra):
    plugin = f"hydra_{'submitit' if extra == 'slurm' else extra}_launcher"
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(f"import sys\nsys.modules['hydra_plugins.{plugin}'] = None\n")
    process = start("cache", "-m", *local_overrides, f"hydra/launcher={name}", "seed=0,1", path=blocked)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and f"pip install 'prune-lab[{extra}]'" in said, said
