"""Runs that have a result already are not run again: they are known by all that decides their numbers.

The index is a file for each finished run in the cache folder, which names the run's folder. The folder's record is what
counts: an entry whose folder is gone or holds something else is no entry.
"""

import glob
import hashlib
import json
import logging
import os
import platform
import shutil
from contextlib import AbstractContextManager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from prune_lab.cache.folder import cache_folder
from prune_lab.cache.source import source_digest
from prune_lab.models.folder import ADAPTER_CONFIG, name_base
from prune_lab.run import artifacts
from prune_lab.run.config import RunConfig
from prune_lab.run.input_files import files_of
from prune_lab.run.record import read_record
from prune_lab.utils.files import write_json
from prune_lab.utils.locks import locked

logger = logging.getLogger(__name__)

_PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "lm-eval", "accelerate", "peft", "numpy")
_LARGE = 2**20
# of a folder's content: what an interrupted run can go on with
_PROGRESS = (artifacts.BLOCKS, artifacts.TRAINING, "wandb_id")
_NOT_SHARED = (".hydra", "wandb", "prune_lab.log", *_PROGRESS)  # what belongs to one process


def identity_of(config: RunConfig) -> str:
    """Returns a SHA-256 of all that decides a run's numbers: settings, files, code, packages, kind of device.

    Imports nothing that is slow to import. Files are known by size and time of change, so that a large model need not
    be read; what a hub delivers is known by its name only.

    Args:
        config: the settings of the run.
    """
    parts = {
        "key": config.key,
        "files": files_of(config.plain),
        "code": source_digest(),
        "packages": packages(),
        "gpu": bool(glob.glob("/dev/nvidia[0-9]*")) and os.environ.get("CUDA_VISIBLE_DEVICES") != "",
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def packages() -> dict[str, str]:
    """Versions of all that numbers depend on."""
    return {name: _version(name) for name in _PACKAGES} | {"python": platform.python_version()}


def claimed(identity: str) -> AbstractContextManager[None]:
    """Keeps other processes from starting the same run meanwhile; waits while another one has it."""
    path = _entry(identity).with_suffix(".lock")
    return locked(path, waiting="another process is at the same run; waiting for it")


def find(identity: str, *, model: bool) -> Path | None:
    """The folder of the finished run of that identity, if there is one.

    Args:
        identity: see `identity_of`.
        model: whether it must hold the pruned model.
    """
    for note in (_entry(identity), _begun(identity)):  # the second: killed before it could be noted as finished
        folder = _named(note)
        if folder is None:
            continue
        try:
            record = read_record(folder)
        except (OSError, ValueError):
            continue
        fits = record.get("status") == artifacts.FINISHED and record.get("identity") == identity
        if fits and (not model or (folder / artifacts.MODEL).is_dir()):
            return folder
    return None


def begin(identity: str, folder: Path) -> None:
    """Notes a run that starts, and moves what an interrupted one of that identity got done into its folder.

    Call it inside `claimed`: nobody is at work there any more.
    """
    before = _named(_begun(identity)) or folder
    try:
        for name in _PROGRESS:
            if (before / name).exists() and not (folder / name).exists():
                shutil.move(before / name, folder / name)
                logger.info("goes on with %s", before / name)
        write_json(_begun(identity), {"folder": str(folder.resolve())})
    except OSError as error:
        logger.warning("what an interrupted run got done cannot be taken over: %s", error)


def add(identity: str, folder: Path) -> None:
    """Notes a finished run; where the index cannot be written, it is run again another time."""
    try:
        write_json(_entry(identity), {"folder": str(folder.resolve())})
        _begun(identity).unlink(missing_ok=True)
    except OSError as error:
        logger.warning("the run cannot be noted as finished: %s", error)


def adopt(earlier: Path, folder: Path) -> dict[str, Any]:
    """Gives a run folder the content of an earlier one, and returns the record.

    Large files, which are always replaced and never changed, are linked where the file system can.
    """
    if earlier.resolve() != folder.resolve():
        shutil.copytree(
            earlier,
            folder,
            copy_function=_link_or_copy,
            ignore=shutil.ignore_patterns(*_NOT_SHARED),
            dirs_exist_ok=True,
        )
        if (folder / artifacts.ADAPTER / ADAPTER_CONFIG).is_file():
            name_base(folder / artifacts.ADAPTER, folder / artifacts.MODEL)  # not the earlier run's, which may go
    return read_record(folder)


def _entry(identity: str) -> Path:
    return cache_folder() / "runs" / identity[:2] / f"{identity}.json"


def _begun(identity: str) -> Path:
    return _entry(identity).with_suffix(".begun")


def _named(note: Path) -> Path | None:
    """The folder that a note names."""
    try:
        return Path(json.loads(note.read_text(encoding="utf-8"))["folder"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _link_or_copy(source: str, target: str) -> None:
    Path(target).unlink(missing_ok=True)  # of an unfinished run in the same folder
    if os.path.getsize(source) >= _LARGE:
        try:
            os.link(source, target)
            return
        except OSError:  # another file system
            pass
    shutil.copy2(source, target)


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
