"""A finished run with a saved model."""

from collections.abc import Callable
from pathlib import Path

import pytest

from prune_lab.export.command import main
from prune_lab.run.entry import run_unless_finished


@pytest.fixture
def saved_run(tmp_path, configured, local_overrides) -> Callable[..., Path]:
    """``saved_run("method=wanda", ...)`` prunes a tiny OPT, evaluates and saves it; returns the folder of the run."""

    def run(*overrides: str) -> Path:
        stages = "stages=[dense,prune,evaluate,save]"
        folder = tmp_path / "run"
        run_unless_finished(configured(*local_overrides, stages, "method=magnitude", *overrides), folder)
        return folder

    return run


def export(*arguments: object) -> int:
    """Runs ``prune-lab-export``, and returns its status."""
    try:
        main([str(each) for each in arguments])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0
