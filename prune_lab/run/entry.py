"""Runs a composed configuration, unless the same run has finished before."""

import logging
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

logger = logging.getLogger(__name__)

_WANDB = "prune_lab.run.tracking.wandb.WandbTracker"


def run_unless_finished(cfg: DictConfig, folder: Path, **how: Any) -> dict[str, Any]:
    """The record of a run, or of an earlier one of the same settings, files and code."""
    from prune_lab.run import finished_runs as reuse

    try:
        plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException:
        return _run(cfg, folder, **how)  # says what is wrong
    # Several processes of one run would have to agree on what they find.
    if plain["skip_finished"] is not True or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return _run(cfg, folder, **how)
    identity = reuse.identity_of(plain)
    with reuse.claimed(identity):
        earlier = reuse.find(identity, model=plain["save_model"] and "save" in plain["stages"])
        if earlier is not None:
            logger.info("finished before, in %s; skip_finished=false runs it again", earlier)
            return reuse.adopt(earlier, folder)
        reuse.begin(identity, folder)
        record = _run(cfg, folder, identity=identity, **how)
        reuse.add(identity, folder)
    return record


def _run(cfg: DictConfig, folder: Path, **how: Any) -> dict[str, Any]:
    if OmegaConf.select(cfg, "tracker._target_") == _WANDB and OmegaConf.select(cfg, "tracker.mode") != "disabled":
        from prune_lab.run.tracking.wandb import begin

        begin()
    from prune_lab.run.runner import execute

    quiet_libraries()
    return execute(cfg, folder, **how)


def quiet_libraries() -> None:
    """Progress of our own takes the place of the libraries' bars and notices."""
    from transformers.utils import logging as transformers_logging

    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # datasets itself takes a second to import
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
