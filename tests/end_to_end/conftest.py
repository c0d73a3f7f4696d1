"""Runs the command: as a process of its own, or inside this one where a start of several seconds would not pay."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra._internal.hydra
import hydra.core.utils
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from omegaconf.basecontainer import BaseContainer

from prune_lab.__main__ import main
from prune_lab.run.trust import Trust
from prune_lab.utils import secrets


@dataclass
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str


def anew(arguments: Sequence[str]) -> list[str]:
    """A test runs what it asks for, unless it says itself that earlier runs count."""
    return [
        *arguments,
        *([] if any(given.startswith("skip_finished=") for given in arguments) else ["skip_finished=false"]),
    ]


def put_guards_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the end of a test take away what the command puts in the place of Hydra's, and what it knows of its user."""
    monkeypatch.setattr(hydra._internal.hydra, "ConfigLoaderImpl", ConfigLoaderImpl)
    monkeypatch.setattr(hydra.core.utils, "_save_config", hydra.core.utils._save_config)
    monkeypatch.setitem(BaseContainer._resolvers, "oc.env", BaseContainer._resolvers["oc.env"])
    monkeypatch.setitem(Singleton._instances, Trust, Trust())
    monkeypatch.setattr(secrets, "_known", set())


@pytest.fixture
def spawn(tmp_path: Path) -> Callable[..., Outcome]:
    """``spawn("method=wanda", ...)`` runs ``python -m prune_lab`` in an empty folder."""

    def run(*arguments: str) -> Outcome:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "120"}
        environment.pop("WANDB_MODE", None)
        command = [sys.executable, "-m", "prune_lab", *anew(arguments)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


def _handlers() -> list[logging.Handler]:
    """All that exist, as logging closes them at the end of a process."""
    return [handler for reference in logging._handlerList if (handler := reference()) is not None]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """``command("method=wanda", ...)`` does the same inside this process; nothing of it is left behind."""

    def run(*arguments: str) -> Outcome:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["prune-lab", *anew(arguments)])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        put_guards_back(monkeypatch)
        root = logging.getLogger()
        handlers, level, before = root.handlers[:], root.level, set(_handlers())
        capfd.readouterr()
        status = 0
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        finally:
            GlobalHydra.instance().clear()
            for handler in set(_handlers()) - before:  # also those of a configuration that failed half-way
                handler.close()
            root.handlers[:] = handlers
            root.setLevel(level)
        out, err = capfd.readouterr()
        return Outcome(status, out, err)

    return run


@pytest.fixture
def job(local_overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The smallest job that prunes, with a store of its own; it takes what finished before."""
    monkeypatch.setenv("PRUNE_LAB_CACHE", str(tmp_path / "cache"))
    return [*local_overrides, "method=magnitude", "skip_finished=true"]


def record(folder: Path) -> dict[str, Any]:
    """The record of a run."""
    found: dict[str, Any] = json.loads((folder / "record.json").read_text())
    return found
