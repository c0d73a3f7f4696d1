"""Runs a configuration, unless the same run has finished before."""

import logging
import os
from pathlib import Path
from typing import Any

from prune_lab.run import finished_runs
from prune_lab.run.config import RunConfig
from prune_lab.run.run_folder import claimed, disk_failures, refuse_inputs_inside
from prune_lab.utils.group import meet
from prune_lab.utils.memory import growing
from prune_lab.utils.processes import processes

logger = logging.getLogger(__name__)

_WANDB = "prune_lab.run.tracking.wandb.WandbTracker"


def run_unless_finished(config: RunConfig, folder: Path, *, job: bool = False, **how: Any) -> dict[str, Any]:
    """Returns the record of a run, or of an earlier one with the same settings, files and code.

    A configuration that a finished run had need not be vetted again, which would import all that it names.

    Args:
        config: the settings of the run.
        folder: the run folder.
        job: it is one of a sweep, in which ``keep_models`` counts.
        **how: see `prune_lab.run.runner.execute`.

    Raises:
        BadInput: the folder is in use, holds somebody's files, or has an input of the run in it; nothing is written.
        RunFailed: the disk is full or fails.
    """
    refuse_inputs_inside(folder, config.plain)
    config = config.as_job() if job else config
    with claimed(folder):
        # Several processes of one run would have to agree on what they find.
        if not config.plain["skip_finished"] or processes().count > 1:
            return _run(config, folder, **how)
        identity, model = finished_runs.identity_of(config, _weights(config)), config.saves_model()
        with finished_runs.claimed(identity):
            earlier = finished_runs.find(identity, folder, model=model)
            if earlier is None and model and job and config.plain["keep_models"] == "best":
                model = False  # an earlier sweep did not keep it
                earlier = finished_runs.find(identity, folder, model=model)
            if earlier is not None:
                logger.info("finished before, in %s; skip_finished=false runs it again", earlier)
                try:
                    with disk_failures(folder):
                        return finished_runs.adopt(earlier, folder, config.key, model=model)
                except FileNotFoundError as error:
                    logger.warning("it has gone meanwhile (%s); the run is done again", error.filename)
            record = _run(config, folder, identity=identity, **how)
            finished_runs.add(identity, folder)
        return record


def _weights(config: RunConfig) -> str | None:
    """Which weights a run loads, where its settings leave it to what there is.

    Weights that are not here yet are fetched now, since the run is known by them, but not before its settings were
    checked.
    """
    if config.plain["model"].get("kind") != "smollm2" or config.plain["model"].get("path") is not None:
        return None
    from prune_lab.models import smollm2

    if smollm2.found() is None:
        from prune_lab.models.load import Checkpoint  # imports torch
        from prune_lab.run.runner import check_settings

        quiet_libraries()
        parts = check_settings(config)
        assert isinstance(parts.model, Checkpoint)
        with parts.addresses.naming():
            _ = parts.model.folder
    return smollm2.found()


def _run(config: RunConfig, folder: Path, **how: Any) -> dict[str, Any]:
    tracker = config.plain["tracker"] or {}
    if tracker.get("_target_") == _WANDB and tracker.get("mode") != "disabled":
        from prune_lab.run.tracking.wandb import begin

        begin()
    with growing():
        from prune_lab.run.runner import execute  # imports torch

        quiet_libraries()
    group = meet()
    record = execute(config, folder, **how)
    if group is not None:
        group.part()
    return record


def quiet_libraries() -> None:
    """Switches off the libraries' bars and notices, in whose place the lab shows its own progress."""
    from transformers.utils import logging as transformers_logging

    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # datasets itself takes a second to import
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
