"""Measures one prune in a process of its own."""

import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.floor import floor_seconds
from bench.models import model_of, small_model
from bench.pruning import prune
from bench.steps import StepTimer
from prune_lab.utils.device import release_free_memory, resolve_device, watch_peak_memory

SCRIPT = Path(__file__).parents[1] / "bench_oneshot.py"


@dataclass(frozen=True)
class Job:
    """What is measured; all of it can be said on the command line.

    Attributes:
        shape: one of `bench.models.SHAPES`, or a folder with a model.
        method: by its name in `bench.pruning`.
        dtype: of the model.
        samples: of the calibration set.
        seqlen: tokens of each.
        blocks: how many are pruned, from the first; ``None``: all.
        device: cpu, cuda or cuda:N.
        processor: count processor seconds instead of the clock's.
    """

    shape: str
    method: str
    dtype: str
    samples: int
    seqlen: int
    blocks: int | None = None
    device: str = "cpu"
    processor: bool = False


@dataclass(frozen=True)
class Measured:
    """What one prune took.

    Attributes:
        seconds: of all.
        memory: peak in MB beyond what was there before.
        floor: seconds of the multiplications that nobody can avoid, by step.
        steps: seconds by step; empty where they are not known.
    """

    seconds: float
    memory: float
    floor: dict[str, float]
    steps: dict[str, float]


def measure_here(job: Job, implementation: str) -> Measured:
    """One prune in this process."""
    device = resolve_device(job.device)
    torch.manual_seed(0)
    model: Any = model_of(job.shape, job.dtype, job.blocks)
    tokens = torch.randint(0, model.vocab_size, (job.samples, job.seqlen))
    floor = floor_seconds(model, tokens.numel(), job.method, device, job.blocks)
    # What loads code and starts threads is done before.
    prune(implementation, job.method, small_model(job.dtype), tokens[:1, :64] % 100, device)
    gc.collect()
    release_free_memory(device)  # or what is measured next would hide in it
    before = watch_peak_memory(device)()
    peak = watch_peak_memory(device)
    clock = time.process_time if job.processor else time.perf_counter
    # A GPU is done with a step later than the host, which would have to wait for it at the end of each.
    timer = StepTimer(clock) if implementation == "prune_lab" and device.type == "cpu" else None
    start = clock()
    prune(implementation, job.method, model, tokens, device, blocks=job.blocks, timer=timer)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = clock() - start
    return Measured(seconds, peak() - before, floor, timer.stop() if timer else {})


def measure_elsewhere(job: Job, implementation: str) -> Measured:
    """`measure_here` in a process of its own.

    Raises:
        SystemExit: the process failed; with the end of what it wrote.
    """
    command = [sys.executable, str(SCRIPT), "--one", implementation, json.dumps(asdict(job))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{job.shape} {job.method} {implementation} failed: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    sys.stderr.write(f"{job.shape} {job.method} {job.dtype} {implementation}: {found}\n")
    return Measured(**found)


def in_turn(jobs: Sequence[tuple[Job, str]], repeats: int) -> list[list[Measured]]:
    """Measures jobs by implementations, one after the other, and all of them again; the results of each."""
    rounds = [[measure_elsewhere(job, implementation) for job, implementation in jobs] for _ in range(repeats)]
    return [list(results) for results in zip(*rounds, strict=True)]


def median(results: Sequence[Measured], what: str) -> float:
    """Of seconds, memory, or the floor of all steps."""
    values = (getattr(result, what) for result in results)
    return statistics.median(sum(value.values()) if isinstance(value, dict) else value for value in values)
