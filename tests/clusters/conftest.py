"""Engines that sweeps run on, as they are: a Slurm of one node, a local Ray."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TIMES = ("seconds", "peak_memory_mb")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A Slurm of its own; called with ``restart`` it restarts the controller."""
    folder = tmp_path / "slurm"

    def call(what: str) -> "subprocess.CompletedProcess[str]":
        script = ["bash", str(ROOT / "scripts/one_node_slurm.sh"), what, str(folder)]
        # Daemons hold on to the streams they are given.
        with (tmp_path / "slurm.log").open("w+") as log:
            done = subprocess.run(script, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False)
            log.seek(0)
            return subprocess.CompletedProcess(script, done.returncode, log.read())

    started = call("start")
    if started.returncode:
        pytest.skip(f"no Slurm: {started.stdout.strip()}")
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))

    def restart(what: str) -> None:
        done = call(what)
        assert done.returncode == 0, done.stdout

    try:
        yield restart
    finally:
        call("stop")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """``start("cache", "-m", ...)`` begins ``prune-lab`` with a cache folder of that name."""
    begun: list[subprocess.Popen[str]] = []

    def begin(cache: str, *arguments: str, path: Path = ROOT) -> "subprocess.Popen[str]":
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join({str(path): None, str(ROOT): None}),
            "PRUNE_LAB_CACHE": str(tmp_path / cache),
            "OMP_NUM_THREADS": "1",
            "RAY_worker_niceness": "0",  # Ray's 15 makes jobs wait for all other tests, five times as long
            "COLUMNS": "120",
        }
        command = [sys.executable, "-m", "prune_lab", *arguments]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        begun.append(process)
        return process

    yield begin
    for process in begun:
        if process.poll() is None:
            process.kill()
        process.communicate()


def record(folder: Path) -> dict:
    return json.loads((folder / "record.json").read_text())


def numbers(folder: Path) -> dict[str, float]:
    """All metrics but times."""
    return {name: value for name, value in record(folder)["metrics"].items() if not name.endswith(TIMES)}
