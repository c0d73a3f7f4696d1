"""Measures sweeps: 24 cells that share prefixes with and without the store, finished cells, and a run's overhead.

Every figure is of ``prune-lab`` processes as a user starts them, with a cache folder of their own.

Example:
    python scripts/bench_sweep.py --model reference_llama --skipped 200
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CELLS = (
    "method=sparsellm", "sparsity.level=0.5,0.6,0.7,0.8", "finetune=full", "training.lr=1e-5,3e-5,1e-4,2e-4,3e-4,1e-3",
    "training.steps=8", "training.batch_size=4", "data.seqlen=256", "data.limit_windows=32",
    "stages=[dense,prune,finetune,evaluate]",
)  # fmt: skip
QUICK = ("method=magnitude", "data.samples=2", "data.seqlen=128", "data.limit_windows=2")
KEPT = ("evaluate=perplexity", "save_model=false", "tracker=jsonl")


def command(cache: Path, *overrides: str, stored: bool = True) -> tuple[float, str]:
    """Seconds of ``prune-lab``, and what it said; with the store's own limit, or with nothing stored."""
    environment = {**os.environ, "PRUNE_LAB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    if not stored:
        environment["PRUNE_LAB_CACHE_GB"] = "0"
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "prune_lab", *overrides], env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"prune-lab ended with {done.returncode}:\n{done.stderr}")
    return seconds, done.stdout + done.stderr


def records(folder: Path) -> list[dict[str, Any]]:
    """Those of a sweep."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/record.json"))]


def cells(folder: Path, model: str, *, stored: bool) -> tuple[float, dict[str, float]]:
    """Seconds of the 24 cells, and the perplexity of each by its settings."""
    job = (f"model={model}", *CELLS, *KEPT, "stage_cache_min_seconds=0", f"hydra.sweep.dir={folder / 'sweep'}")
    seconds, _ = command(folder / "cache", "-m", *job, stored=stored)
    found = {
        f"{record['config']['sparsity']['level']} {record['config']['finetune']['lr']}": record["metrics"]
        for record in records(folder / "sweep")
    }
    return seconds, {cell: metrics["evaluate/perplexity"] for cell, metrics in found.items()}


def skipped(folder: Path, model: str, jobs: int) -> float:
    """Seconds of a sweep of jobs that have all finished before; they differ in what changes no number."""
    job = (f"model={model}", *QUICK, *KEPT[:2])
    command(folder / "cache", *job, "tracker=wandb", f"hydra.run.dir={folder / 'first'}")
    projects = ",".join(f"project{number}" for number in range(jobs))
    seconds, said = command(
        folder / "cache",
        "-m",
        *job,
        "tracker=wandb",
        f"tracker.project={projects}",
        f"hydra.sweep.dir={folder / 'sweep'}",
    )
    if said.count("finished before") != jobs:
        sys.exit(f"not all were finished before:\n{said}")
    return seconds


def overhead(folder: Path, model: str, tracker: str, runs: int) -> list[float]:
    """Seconds of each of several processes that are neither loading (packages, model, data) nor a stage's."""
    found = []
    modules = "torch, transformers, prune_lab.run.runner, prune_lab.run.stages.prune"
    imports = f"import time; start = time.perf_counter(); import {modules}"
    for number in range(runs):
        run = folder / f"{tracker}{number}"
        loading = f"{imports}; print(time.perf_counter() - start)"
        imported = float(subprocess.run([sys.executable, "-c", loading], capture_output=True, text=True).stdout)
        seconds, said = command(
            folder / "cache",
            f"model={model}",
            *QUICK,
            *KEPT[:2],
            f"tracker={tracker}",
            "skip_finished=false",
            f"hydra.run.dir={run}",
        )
        loaded = float(re.findall(r"evaluation windows \(([0-9.]+) s\)", said)[0])
        metrics = json.loads((run / "record.json").read_text())["metrics"]
        stages = sum(value for name, value in metrics.items() if name.count("/") == 1 and name.endswith("/seconds"))
        found.append(seconds - imported - loaded - stages)
    return found


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference_llama")
    parser.add_argument("--skipped", type=int, default=200, help="jobs of the sweep of finished ones (%(default)s)")
    parser.add_argument("--cells", action="store_true", help="the 24 cells alone")
    parser.add_argument("--runs", type=int, default=5, help="processes whose overhead is measured (%(default)s)")
    parsed = parser.parse_args()
    print("| what | |\n|---|---:|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone, numbers = cells(folder / "alone", parsed.model, stored=False)
        _row("24 cells, 4 prunings, 6 trainings each; s without the store", f"{alone:.1f}")
        shared, same = cells(folder / "shared", parsed.model, stored=True)
        if numbers != same or len(same) != 24:
            sys.exit(f"the store changed numbers: {numbers} {same}")
        _row("the same with it, the same numbers; s", f"{shared:.1f}")
        _row("share of the time", f"{shared / alone:.2f}")
        if parsed.cells:
            return
        _row(
            f"{parsed.skipped} jobs that have finished before; s",
            f"{skipped(folder, parsed.model, parsed.skipped):.1f}",
        )
        for tracker in ("jsonl", "wandb"):
            spent = overhead(folder, parsed.model, tracker, parsed.runs)
            _row(f"overhead of a run, tracker={tracker}; s, median (largest)", _told(spent))
        helps = [command(folder, "--help")[0] for _ in range(parsed.runs)]
        _row("prune-lab --help; s, median (largest)", _told(helps))


def _row(what: str, found: str) -> None:
    print(f"| {what} | {found} |", flush=True)


def _told(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({max(seconds):.2f})"


if __name__ == "__main__":
    main()
