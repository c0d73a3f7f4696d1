"""Runs that have a result already are not run again: they are known by all that decides their numbers.

The index is a file for each finished run in the cache folder, which names the run's folder. The folder's record is what
counts: an entry whose folder is gone or holds something else is no entry. It says which files the run left, with sizes
and checksums; they are checked before they are handed over.
"""

import glob
import hashlib
import json
import logging
import os
import platform
import shutil
from contextlib import AbstractContextManager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from prune_lab.cache.folder import cache_folder
from prune_lab.cache.source import source_digest
from prune_lab.models.folder import ADAPTER_CONFIG, name_base
from prune_lab.run import artifacts, own_files
from prune_lab.run.config import RunConfig
from prune_lab.run.input_files import files_of
from prune_lab.run.record import read_record
from prune_lab.run.run_folder import claimed_if_free
from prune_lab.utils.files import appearing, clone, write_json
from prune_lab.utils.locks import locked
from prune_lab.utils.manifest import manifest_of

logger = logging.getLogger(__name__)

_PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "lm-eval", "accelerate", "peft", "numpy")


def identity_of(config: RunConfig, weights: str | None = None) -> str:
    """Returns a SHA-256 of all that decides a run's numbers: settings, files, code, packages, kind of device.

    Imports nothing that is slow to import. Files are known by size and time of change, so that a large model need not
    be read; what a hub delivers is known by its name only.

    Args:
        config: the settings of the run.
        weights: which ones are loaded, where the settings do not say it.
    """
    parts = {
        "key": config.key,
        "weights": weights,
        "files": files_of(config.plain),
        "code": source_digest(),
        "packages": packages(),
        "gpu": bool(glob.glob("/dev/nvidia[0-9]*")) and os.environ.get("CUDA_VISIBLE_DEVICES") != "",
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def packages() -> dict[str, str]:
    """Versions of all that numbers depend on."""
    return {name: _version(name) for name in _PACKAGES} | {"python": platform.python_version()}


def claimed(identity: str) -> AbstractContextManager[bool]:
    """Keeps other processes from starting the same run meanwhile; waits while another one has it."""
    path = _entry(identity).with_suffix(".lock")
    return locked(path, waiting="another process is at the same run; waiting for it")


def find(identity: str, folder: Path, *, model: bool) -> Path | None:
    """The folder of the finished run of that identity, if there is one whose files are as the run left them.

    A run whose files are not is said, and forgotten.

    Args:
        identity: see `identity_of`.
        folder: of the run that asks; it may hold the result itself.
        model: whether it must hold the pruned model.
    """
    notes = (_entry(identity), _begun(identity))  # the second: killed before it could be noted as finished
    seen: set[Path] = set()
    for note, each in [(None, folder), *((note, _named(note)) for note in notes)]:
        if each is None or each.resolve() in seen:
            continue
        seen.add(each.resolve())
        try:
            record = read_record(each)
        except (OSError, ValueError):
            continue
        if record["status"] != artifacts.FINISHED or record.get("identity") != identity:
            continue
        files = _handed_over(record, model=model)
        if files is None:
            continue
        fault = own_files.fault_of(each, files)
        if fault is None:
            return each
        logger.warning("the result in %s is not as its run left it (%s), the run is done again", each, fault)
        if note is not None:
            with suppress(OSError):
                note.unlink(missing_ok=True)
    return None


def begin(identity: str, folder: Path) -> None:
    """Notes a run that starts, and moves what an interrupted one of that identity got done into its folder.

    Call it inside `claimed`: no other process is at the same run; but one may be at another in the same folder.
    """
    before = _named(_begun(identity)) or folder
    try:
        with claimed_if_free(before) as free:
            if free and own_files.identity_in(before) == identity:
                _go_on(before, folder)
        write_json(_begun(identity), {"folder": str(folder.resolve())})
    except OSError as error:
        logger.warning("what an interrupted run got done cannot be taken over: %s", error)


def _go_on(before: Path, folder: Path) -> None:
    for name in artifacts.PROGRESS:
        if (before / name).exists() and not (folder / name).exists():
            shutil.move(before / name, folder / name)
            logger.info("goes on with %s", before / name)


def add(identity: str, folder: Path) -> None:
    """Notes a finished run; where the index cannot be written, it is run again another time."""
    try:
        write_json(_entry(identity), {"folder": str(folder.resolve())})
        _begun(identity).unlink(missing_ok=True)
    except OSError as error:
        logger.warning("the run cannot be noted as finished: %s", error)


def adopt(earlier: Path, folder: Path, key: str, *, model: bool) -> dict[str, Any]:
    """Gives a run folder the files of an earlier one, its record last, and returns the record.

    No file is shared by the two folders: see `prune_lab.utils.files.clone`.

    Args:
        earlier: the folder of the run that was found.
        folder: that is claimed.
        key: of the settings.
        model: whether the pruned model is wanted.
    """
    record = read_record(earlier)
    if earlier.resolve() == folder.resolve():
        own_files.unmark_stale(folder)
        return record
    files = _handed_over(record, model=model) or {}
    taken = own_files.take(folder, key, record["identity"])
    for top in sorted({name.partition("/")[0] for name in files}):
        if top in files:
            clone(earlier / top, folder / top)
        else:
            with appearing(folder / top) as new:
                for name in (name for name in files if name.startswith(f"{top}/")):
                    clone(earlier / name, new / name.removeprefix(f"{top}/"))
    config = f"{artifacts.ADAPTER}/{ADAPTER_CONFIG}"
    if config in files:
        name_base(folder / artifacts.ADAPTER, folder / artifacts.MODEL)  # not the earlier run's, which may go
        files |= manifest_of(folder, [config])
    taken.note()
    taken.give_way()
    record |= {"files": files}
    write_json(folder / artifacts.RECORD, record)
    return record


def _handed_over(record: dict[str, Any], *, model: bool) -> dict[str, Any] | None:
    """The files that a run which asks is given, by what the record says; ``None`` if the model is missing."""
    files = record.get("files")
    if not isinstance(files, dict):
        return None
    saved = [name for name in files if name.startswith((f"{artifacts.MODEL}/", f"{artifacts.ADAPTER}/"))]
    if model:
        return dict(files) if saved else None
    return {name: said for name, said in files.items() if name not in saved}


def _entry(identity: str) -> Path:
    return cache_folder() / "runs" / identity[:2] / f"{identity}.json"


def _begun(identity: str) -> Path:
    return _entry(identity).with_suffix(".begun")


def _named(note: Path) -> Path | None:
    """The folder that a note names."""
    named = own_files.read_note(note).get("folder")
    return Path(named) if isinstance(named, str) else None


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
