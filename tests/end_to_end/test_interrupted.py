"""A run that is killed while it prunes or trains, and started again, ends where an undisturbed one ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import prune_lab

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("finetune", ["full", "sparse_lora", "distill"])
def test_a_killed_run_goes_on_where_it_was(command, local_overrides, tmp_path, finetune):
    job = [
        *local_overrides,
        "method=wanda",
        "sparsity.level=0.5",
        f"finetune={finetune}",
        "training.steps=60",
        "training.batch_size=2",
        "training.eval_samples=2",
        "training.save_every=5",
        "stages=[prune,finetune,evaluate,save]",
    ]
    whole, killed = _undisturbed_and_killed(command, job, "training/finetune", "latest.json", tmp_path)
    assert "training goes on at step" in killed.output
    records = [json.loads((run.folder / "record.json").read_text())["metrics"] for run in (whole, killed)]
    for name in ("finetune/loss", "finetune/held_out_loss", "evaluate/perplexity", "finetune/sparsity_after"):
        assert records[0][name] == records[1][name], name


@pytest.mark.slow
def test_a_killed_pruning_goes_on_at_its_next_block(command, local_overrides, tmp_path):
    job = [
        *local_overrides,
        "method=reconstruction",
        "method@method.inner=wanda",
        "method.epochs=150",
        "stages.prune.save_every=0",
        "stages=[prune,evaluate,save]",
    ]
    whole, killed = _undisturbed_and_killed(command, job, "blocks", "block_0.safetensors", tmp_path)
    assert "was pruned before the interruption" in killed.output
    rows = [_without_seconds(run.folder / "layers.csv") for run in (whole, killed)]
    assert rows[0] == rows[1]


class _Run(NamedTuple):
    folder: Path
    output: str


def _undisturbed_and_killed(
    command: Callable[..., Any], job: list[str], states: str, state: str, tmp_path: Path
) -> tuple[_Run, _Run]:
    """Runs a job twice, the second time killed once ``states/state`` is there and started again: equal models.

    What is killed is a process of its own; the others run in this one, which saves two starts.
    """
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = command(*job, f"hydra.run.dir={whole}")
    assert undisturbed.status == 0, undisturbed.err
    again = [*job, f"hydra.run.dir={killed}"]
    _kill_after_a_state(again, killed / states / state, tmp_path)
    assert not (killed / "model").exists() and not (killed / "record.json").exists()
    outcome = command(*again)
    assert outcome.status == 0, outcome.err
    assert not (killed / states).exists()
    models = [prune_lab.load(str(folder / "model")).hf.state_dict() for folder in (whole, killed)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    return _Run(whole, undisturbed.out + undisturbed.err), _Run(killed, outcome.out + outcome.err)


def _without_seconds(path: Path) -> list[str]:
    return [line.rpartition(",")[0] for line in path.read_text().splitlines()]


def _kill_after_a_state(job: list[str], state: Path, cwd: Path) -> None:
    """Starts the command, and kills it without warning once it has saved a state."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "prune_lab", *job, "skip_finished=false"],
        cwd=cwd,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 240
    while not state.is_file() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state.is_file()
