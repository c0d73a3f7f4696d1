"""The folder of one run: of two commands only one is at work in it, and none where it would replace somebody's files.

Who is at work is noted in ``.prune_lab`` beside the lock; the system releases that when the process ends.
"""

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prune_lab.errors import BadInput, Reported, RunFailed
from prune_lab.run import artifacts
from prune_lab.run.input_files import bounded, named_inputs
from prune_lab.run.own_files import NOTES, foreign_in, is_stale, read_note, set_aside, unmark_stale
from prune_lab.utils.disk import disk_failure
from prune_lab.utils.files import write_json
from prune_lab.utils.locks import Held, locked_at_once
from prune_lab.utils.paths import named_paths, shown_path

OTHER_FOLDER = (
    "set hydra.run.dir=DIR (of a sweep hydra.sweep.dir=DIR, of a search hydra.sweeper.folder=DIR) to another folder"
)
"""The remedy of every message about a run folder that cannot be; a call in Python has its own words for it."""
_LOCK, _HOLDER = "lock", "holder.json"
_PATIENCE = 1.0  # seconds: another command may just be looking whether the folder is free
_held: set[Path] = set()  # by this process


def check_free(folder: Path) -> None:
    """Makes sure that a run may work in a folder, and leaves it as it is.

    Raises:
        BadInput: another process is at work there, or something is in the way that is no run's.
    """
    refuse_root(folder)
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"the run folder {folder} cannot be written (it is a file); {OTHER_FOLDER}")
    if not folder.is_dir() or folder.resolve() in _held:
        return
    foreign = foreign_in(folder)
    if foreign:
        raise BadInput(
            f"the run folder {folder} holds {', '.join(foreign)}, which no run of prune-lab has left there and one "
            f"would replace; {OTHER_FOLDER}, or move {'it' if len(foreign) == 1 else 'them'} away"
        )
    if (folder / NOTES / _LOCK).exists():
        with _lock(folder):
            pass


def refuse_root(folder: Path) -> None:
    """Keeps the files of runs out of the root of the file system, where an administrator could write them.

    Raises:
        BadInput: the folder is the root.
    """
    if folder.resolve() == Path(folder.resolve().anchor):
        raise BadInput(f"{folder} is the root of the file system, and runs have many files; {OTHER_FOLDER}")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keeps other commands out of a folder, which is made if need be; may be entered again by who is in.

    Raises:
        BadInput: see `check_free`; or the folder cannot be written.
    """
    check_free(folder)
    path = folder.resolve()
    if path in _held:
        yield
        return
    with writing(folder):
        (folder / NOTES).mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        with writing(folder):
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            write_json(folder / NOTES / _HOLDER, holder)
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)


@contextmanager
def claimed_if_free(folder: Path) -> Iterator[bool]:
    """Does the same for another run's folder, where it is there; yields whether nobody is at work in it."""
    if folder.resolve() in _held or not (folder / NOTES / _LOCK).exists():
        yield folder.is_dir()
        return
    try:
        with locked_at_once(folder / NOTES / _LOCK):
            yield True
    except Held:
        yield False


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Says of the folder what the system says of its files.

    Raises:
        BadInput: they cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise BadInput(f"the run folder {folder} cannot be written ({error.strerror}); {OTHER_FOLDER}") from error


def refuse_inputs_inside(folder: Path, settings: Mapping[str, Any]) -> None:
    """Makes sure that a run cannot replace what it reads.

    Args:
        folder: of the run.
        settings: of the run, in plain containers.

    Raises:
        BadInput: a setting names a file or folder in the run folder, or that folder itself, or too many files.
    """
    inside = folder.resolve()
    for key, text in named_inputs(settings):
        with bounded(text, key):
            paths = named_paths(text)
        for path in paths:
            # A link inside counts as what it is, and as what it leads to.
            for place in (Path(os.path.abspath(path.parent)).resolve() / path.name, path.resolve()):
                if place == inside or inside in place.parents:
                    raise BadInput(
                        f"{key}={shown_path(text)} lies in the run folder {folder}, where the run would write over "
                        f"it; {OTHER_FOLDER}"
                    )


@contextmanager
def disk_failures(folder: Path) -> Iterator[None]:
    """Says in one message what a disk does not let a run do.

    Args:
        folder: of the run.

    Raises:
        RunFailed: the disk is full, over quota, read-only, or fails.
    """
    try:
        yield
    except Reported:  # says it already
        raise
    except Exception as error:
        failure = disk_failure(error)
        if failure is None:
            raise
        raise RunFailed(
            f"the run folder {folder} cannot be written any more ({failure}); make room there, or set "
            "hydra.run.dir=DIR to a folder on another disk, and give the same command again: it goes on where this one "
            "ended"
        ) from error


def leave_failure(folder: Path, record: Mapping[str, Any]) -> None:
    """Leaves the record of a job that failed before its run began, unless the run left one itself."""
    with claimed(folder):
        if (folder / artifacts.RECORD).exists() and not is_stale(folder):
            return
        if is_stale(folder):
            set_aside(folder)
        write_json(folder / artifacts.RECORD, record)
        unmark_stale(folder)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    try:
        with locked_at_once(folder / NOTES / _LOCK, patience=_PATIENCE):
            yield
    except Held as error:
        holder = read_note(folder / NOTES / _HOLDER)
        who = f"process {holder.get('pid')} on {holder.get('host')}" if holder else "another process"
        since = f" since {holder['since']}" if "since" in holder else ""
        raise BadInput(
            f"the run folder {folder} is in use: {who} is at work there{since}; wait for it, or {OTHER_FOLDER}"
        ) from error
