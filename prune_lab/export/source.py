"""What is exported: a saved model, and the record of the run that saved it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prune_lab.errors import BadInput
from prune_lab.models.local import LocalFolder
from prune_lab.models.origin import Origin, is_changed, read_origin
from prune_lab.models.weight_files import WeightFiles, find_weights
from prune_lab.run import artifacts
from prune_lab.run.record import Unreadable, read_record
from prune_lab.utils.paths import local_path


@dataclass(frozen=True)
class Saved:
    """A saved model.

    Attributes:
        folder: of the model, in the Hugging Face format.
        weights: its files.
        origin: what was done to it, where its folder says so.
        changed: whether its weights or configuration are not those any more that its folder speaks of.
        record: of the run that saved it; ``None`` where there is none, or another run's.
        run: the folder of that run.
    """

    folder: Path
    weights: WeightFiles
    origin: Origin | None = None
    changed: bool = False
    record: Mapping[str, Any] | None = None
    run: Path | None = None


def find_saved(given: str) -> Saved:
    """Finds the model of a run, or takes a model folder, and the record that belongs to it.

    Args:
        given: the folder of a run, or of a model.

    Raises:
        BadInput: there is no model, it cannot be read, or the run did not finish.
    """
    path = local_path(given).absolute()
    is_run = (path / artifacts.RECORD).is_file() and not (path / "config.json").is_file()
    if is_run:
        _check_run(path)
    folder = path / artifacts.MODEL if is_run else path
    try:
        LocalFolder(str(folder)).check()
        weights, origin = find_weights(folder), read_origin(folder)
    except BadInput as error:
        error.locate(lambda _: "RUN_OR_MODEL_DIR")
        raise
    if weights.pickled:
        raise BadInput(
            f"{folder} holds {weights.files[0].name}, and weights are exported from safetensors files only; save them "
            f"as such: prune-lab model={given} 'stages=[save]'"
        )
    if origin is None or is_changed(folder):
        return Saved(folder, weights, origin, changed=origin is not None)
    record = _record_of(folder.parent, origin)
    if record is not None and (folder.parent / artifacts.ADAPTER).is_dir():
        raise BadInput(
            f"the run {folder.parent} has left updates beside the weights ({artifacts.ADAPTER}/), with which it was "
            "measured, and an export holds weights alone; run it with method.merge=true or finetune.merge=true"
        )
    return Saved(folder, weights, origin, record=record, run=folder.parent if record else None)


def _check_run(path: Path) -> None:
    try:
        status = read_record(path)["status"]
    except (OSError, Unreadable) as error:
        raise BadInput(
            f"the record of the run {path} cannot be read: {error}; give its folder {artifacts.MODEL}/"
        ) from (error)
    if status != artifacts.FINISHED:
        raise BadInput(f"the run {path} is {status}; give the same command again to finish it, and export it then")
    if not (path / artifacts.MODEL).is_dir():
        raise BadInput(
            f"the run {path} has no saved model; run it again with save_model=true and the stage save, or give the "
            "folder of a model"
        )


def _record_of(run: Path, origin: Origin) -> Mapping[str, Any] | None:
    """The record of the run that saved the model; none of another run that happens to lie there."""
    try:
        record = read_record(run)
    except (OSError, Unreadable):
        return None
    belongs = record["status"] == artifacts.FINISHED and record.get("key") == origin.run.get("key") is not None
    return record if belongs else None
