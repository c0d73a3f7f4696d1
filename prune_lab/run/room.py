"""Whether what a run leaves fits on the disk, and where its model goes when the disk fills up all the same."""

import logging
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from prune_lab.cache.folder import cache_folder
from prune_lab.errors import BadInput, RunFailed
from prune_lab.run import artifacts
from prune_lab.run.config import RunConfig
from prune_lab.run.masks_file import save_masks
from prune_lab.run.run_folder import OTHER_FOLDER
from prune_lab.run.stages.save import save_model
from prune_lab.run.state import RunState, Stage
from prune_lab.utils.disk import disk_failure

logger = logging.getLogger(__name__)


def check_room(run: RunState, stages: Mapping[str, Stage]) -> None:
    """Makes sure that a run's files fit on the disk, before the work is done.

    Saved states and blocks, from which an interrupted run goes on, are not counted: a run does without them.

    Args:
        run: with its model loaded.
        stages: of the run.

    Raises:
        BadInput: they do not fit.
    """
    needed, free = sum(stage.room(run) for stage in stages.values()), shutil.disk_usage(run.folder).free
    if run.model.mapped is not None:  # what is changed goes to files until the run has ended
        needed += max((stage.changed_bytes(run) for stage in stages.values()), default=0)
    if needed > free:
        raise BadInput(
            f"the run folder {run.folder} has room for {free / 1e9:.3g} GB, and the run would leave about "
            f"{needed / 1e9:.3g} GB there; make room, {OTHER_FOLDER}, on another disk, or "
            "save_model=false"
        )


def rescued(run: RunState, config: RunConfig, error: BaseException) -> RunFailed:
    """Saves the model of a run whose folder cannot be written any more in another place.

    Args:
        run: as it is.
        config: its settings.
        error: of the disk.

    Returns:
        The error that says what happened, and where the model is.
    """
    failure = disk_failure(error)
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.key[:12]}"
    for place in (cache_folder() / "rescued" / name, Path(tempfile.gettempdir()) / f"prune_lab-rescued-{name}"):
        try:
            place.mkdir(parents=True, mode=0o700)
            save_model(run.model, run.origin, place / artifacts.MODEL)
            if run.masks:
                save_masks(run.masks, {}, place / artifacts.MASKS)
        except Exception as other:
            logger.warning("the model cannot be saved in %s either: %s", place, disk_failure(other) or other)
            shutil.rmtree(place, ignore_errors=True)
            continue
        return RunFailed(
            f"the run folder {run.folder} cannot be written any more ({failure}); the model as it was by then is in "
            f"{place}: move it from there. Make room, or set hydra.run.dir=DIR to a folder on another disk, and give "
            "the same command again for the rest"
        )
    return RunFailed(
        f"the run folder {run.folder} cannot be written any more ({failure}), and no other place was found for the "
        "model; make room, or set hydra.run.dir=DIR to a folder on another disk, and give the same command again: it "
        "goes on where this one ended"
    )
