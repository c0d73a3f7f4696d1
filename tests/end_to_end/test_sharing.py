"""What several runs have in common is done once, and nobody can tell from the numbers."""

import json
import os
import re
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest
import torch

from tests.end_to_end.conftest import record

ROOT = Path(__file__).parents[2]
TIMES = ("seconds", "training_seconds", "peak_memory_mb", "allocation_seconds", "forward_seconds")
TUNED = ("finetune=full", "training.steps=4", "training.batch_size=2")


@pytest.fixture
def job(local_overrides, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNE_LAB_CACHE", str(tmp_path / "cache"))
    return [
        *local_overrides,
        "method=sparsegpt",
        "sparsity.level=0.6",
        "skip_finished=true",
        "stage_cache_min_seconds=0",
    ]


def run(command, folder: Path, *job: str) -> list[str]:
    """The stages that were taken from another run."""
    outcome = command(*job, f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    said = (line for line in (outcome.out + outcome.err).splitlines() if ": taken from an earlier run" in line)
    return [name for line in said for name in re.findall(r"[a-z]+", line.partition(": taken")[0].split("  ")[-1])]


def numbers(folder: Path) -> dict:
    return {name: value for name, value in record(folder)["metrics"].items() if not name.endswith(TIMES)}


def left(folder: Path) -> dict[str, bytes]:
    """What a run folder holds, but for what says when it was made and how long it took."""
    names = ("masks.safetensors", "rounds.csv", "model/model.safetensors", "model/config.json")
    found = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    rows = [line.rpartition(",")[0] for line in (folder / "layers.csv").read_text().splitlines()]  # without seconds
    return found | {"layers.csv": "\n".join(rows).encode()}


def alone(command, folder: Path, *job: str) -> None:
    assert run(command, folder, *job, "skip_finished=false") == []


@pytest.mark.parametrize("finetune", ["full", "lora", "sparse_lora", "distill"])
def test_a_sweep_over_trainings_prunes_once_with_the_same_bits(command, job, tmp_path, finetune):
    tuned = [*job, f"finetune={finetune}", *TUNED[1:]]
    if "lora" in finetune:
        tuned.append("finetune.rank=2")
    assert run(command, tmp_path / "first", *job) == []
    assert run(command, tmp_path / "second", *tuned) == ["prune"]
    alone(command, tmp_path / "alone", *tuned)
    assert numbers(tmp_path / "second") == numbers(tmp_path / "alone")
    assert left(tmp_path / "second") == left(tmp_path / "alone")
    first, second, other = (record(tmp_path / name) for name in ("first", "second", "alone"))
    assert second["metrics"]["prune/seconds"] == first["metrics"]["prune/seconds"]
    taken = second["protocol"].pop("taken")
    assert taken["stages"] == ["prune"] and taken["made"]
    assert second["protocol"] == other["protocol"]
    lines = [json.loads(line)["stage"] for line in (tmp_path / "second/metrics.jsonl").read_text().splitlines()]
    assert [name for name, _ in groupby(lines)] == ["dense", "prune", "finetune", "evaluate", "save"]


def test_an_entry_that_goes_while_it_is_read_leaves_the_model_as_it_was(command, job, tmp_path, monkeypatch):
    """Another process makes room in the store; the stage is done as if there had been none."""
    run(command, tmp_path / "first", *job)

    def gone(path):
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr("prune_lab.run.stage_cache.load_file", gone)
    assert run(command, tmp_path / "second", *job, *TUNED) == []
    monkeypatch.undo()
    monkeypatch.setenv("PRUNE_LAB_CACHE", str(tmp_path / "cache"))
    alone(command, tmp_path / "alone", *job, *TUNED)
    assert numbers(tmp_path / "second") == numbers(tmp_path / "alone")
    assert left(tmp_path / "second") == left(tmp_path / "alone")


def test_what_was_pruned_is_measured_once_before_it_is_trained(command, job, tmp_path):
    said = []
    for name, rate in {"first": "1e-3", "second": "2e-3", "third": "2e-3"}.items():
        more = ["skip_finished=false"] if name == "third" else []
        outcome = command(*job, *TUNED, f"training.lr={rate}", *more, f"hydra.run.dir={tmp_path / name}")
        said.append((outcome.out + outcome.err).count("evaluation: kept from an earlier run"))
    assert said == [0, 2, 0]  # of the two one is the dense model's
    assert numbers(tmp_path / "second") == numbers(tmp_path / "third")


def test_training_is_shared_by_runs_that_differ_in_what_they_measure(command, job, tmp_path):
    tuned = [*job, *TUNED]
    run(command, tmp_path / "first", *tuned)
    assert run(command, tmp_path / "second", *tuned, "evaluate=training_loss") == ["prune", "finetune"]
    alone(command, tmp_path / "alone", *tuned, "evaluate=training_loss")
    assert numbers(tmp_path / "second") == numbers(tmp_path / "alone")
    assert left(tmp_path / "second") == left(tmp_path / "alone")


def test_an_evaluation_in_between_sees_its_own_model(command, job, tmp_path):
    run(command, tmp_path / "first", *job, *TUNED)
    stages = "stages=[dense,prune,evaluate,finetune,save]"
    assert run(command, tmp_path / "second", *job, *TUNED, stages) == ["prune", "finetune"]
    alone(command, tmp_path / "alone", *job, *TUNED, stages)
    assert numbers(tmp_path / "second") == numbers(tmp_path / "alone")
    assert left(tmp_path / "second") == left(tmp_path / "alone")


def test_rounds_of_pruning_and_training_are_shared(command, job, tmp_path):
    rounds = [*job, *TUNED, "stages.iterate.rounds=2"]
    run(command, tmp_path / "first", *rounds, "stages=[iterate,evaluate]")
    assert run(command, tmp_path / "second", *rounds, "stages=[dense,iterate,evaluate,save]") == ["iterate"]
    alone(command, tmp_path / "alone", *rounds, "stages=[dense,iterate,evaluate,save]")
    assert numbers(tmp_path / "second") == numbers(tmp_path / "alone")
    assert left(tmp_path / "second") == left(tmp_path / "alone")


def test_a_method_that_trains_is_shared_and_then_shrunk(command, job, tmp_path):
    gum = [*job, "method=gum", "sparsity=neurons", "sparsity.level=0.5", "training.steps=6", "training.batch_size=2"]
    run(command, tmp_path / "first", *gum)
    shrunk = [*gum, "stages=[dense,prune,shrink,evaluate,save]", "stages.shrink.repeats=1"]
    assert run(command, tmp_path / "second", *shrunk) == ["prune"]
    alone(command, tmp_path / "alone", *shrunk)
    same = [
        {k: v for k, v in numbers(tmp_path / name).items() if not k.startswith("shrink/") or k == "shrink/parameters"}
        for name in ("second", "alone")
    ]  # the stage shrink measures times
    assert same[0] == same[1]
    assert left(tmp_path / "second") == left(tmp_path / "alone")
    assert run(command, tmp_path / "third", *gum, "training.steps=7") == []


def test_orders_of_channels_are_kept_with_the_masks(command, job, tmp_path):
    ria = [*job[:-3], "method=ria", "sparsity=nm_2of4", "method.permute=true", *job[-2:]]
    run(command, tmp_path / "first", *ria)
    assert run(command, tmp_path / "second", *ria, *TUNED) == ["prune"]
    assert (tmp_path / "first/masks.safetensors").read_bytes() == (tmp_path / "second/masks.safetensors").read_bytes()


CHANGES = ["method", "seed", "data", "model", "attention", "code", "threads", "stage_cache_min_seconds", "damage"]


@pytest.mark.parametrize("change", CHANGES)
def test_what_would_give_something_else_is_not_taken(command, job, tmp_path, monkeypatch, token_files, change):
    assert run(command, tmp_path / "first", *job) == []
    again = [*job, *TUNED]
    if change == "method":
        again.append("method.damping=0.02")
    elif change == "seed":
        again.append("seed=1")
    elif change == "data":
        os.utime(token_files[0], ns=(1, 1))
    elif change == "model":
        again += ["model.dtype=bfloat16"]
    elif change == "attention":
        again += ["model.attn_implementation=eager"]
    elif change == "code":
        monkeypatch.setattr("prune_lab.run.stage_cache.source_digest", lambda: "other")
    elif change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    elif change == "stage_cache_min_seconds":
        again.append("stage_cache_min_seconds=null")
    else:
        [file] = (tmp_path / "cache/store").glob("??/*/layers.csv")
        file.write_text("nonsense")
    assert run(command, tmp_path / "second", *again) == []
    assert "taken" not in record(tmp_path / "second")["protocol"]


def test_quick_stages_are_not_kept(command, job, tmp_path):
    run(command, tmp_path / "first", *job, "stage_cache_min_seconds=1000")
    assert not list((tmp_path / "cache/store").glob("??/*/model.safetensors"))
    assert run(command, tmp_path / "second", *job, *TUNED) == []


def test_updates_that_stand_beside_the_weights_are_not_kept(command, job, tmp_path):
    lora = [*job, "finetune=lora", *TUNED[1:], "finetune.rank=2", "finetune.merge=false"]
    run(command, tmp_path / "first", *lora)
    assert run(command, tmp_path / "second", *lora, "evaluate=training_loss") == ["prune"]


@pytest.mark.parametrize("wrong", ["-1", "true", "often"])
def test_share_is_a_number_of_seconds(command, job, wrong):
    outcome = command(*job, f"stage_cache_min_seconds={wrong}")
    assert outcome.status == 2 and "stage_cache_min_seconds=" in outcome.err and "seconds" in outcome.err


def test_processes_at_the_same_stage_do_it_once(job, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PRUNE_LAB_CACHE": str(tmp_path / "cache")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "prune_lab", *job, *TUNED, f"training.lr={lr}", f"hydra.run.dir={tmp_path / lr}"],
            env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for lr in ("1e-3", "1e-4")
    ]  # fmt: skip
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    taken = ["taken" in record(tmp_path / lr)["protocol"] for lr in ("1e-3", "1e-4")]
    assert sorted(taken) == [False, True]
