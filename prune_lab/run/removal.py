"""Removes what the lab has written in a run folder, and nothing else that lies there.

A file goes if the lab has noted it with the size that it has now. Links are neither followed nor removed, and names
that lead out of the folder are no names.
"""

import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from prune_lab.run import artifacts
from prune_lab.run.record import read_record
from prune_lab.run.run_folder import claimed_if_free
from prune_lab.utils.files import write_json

_MODELS = (artifacts.MODEL, artifacts.ADAPTER)


def remove_model(folder: Path) -> int:
    """Removes the model that a finished run has left in its folder, and lets its record say so.

    The record goes first: a process that is killed in between leaves files that no record claims, which the next run
    there sets aside.

    Args:
        folder: of the run.

    Returns:
        The bytes that were removed; 0 where another process is at work in the folder.
    """
    with claimed_if_free(folder) as free:
        try:
            record = read_record(folder)
        except (OSError, ValueError):
            return 0
        files = sizes_in(record.get("files"))
        saved = {name: size for name, size in files.items() if name.partition("/")[0] in _MODELS}
        if not free or record["status"] != artifacts.FINISHED or not saved:
            return 0
        record["files"] = {name: said for name, said in record["files"].items() if name not in saved}
        write_json(folder / artifacts.RECORD, record)
        return remove_files(folder, saved)


def model_bytes(record: Mapping[str, Any]) -> int:
    """Returns the bytes of the model that a run has left, by its record."""
    return sum(size for name, size in sizes_in(record.get("files")).items() if name.partition("/")[0] in _MODELS)


def sizes_in(files: object) -> dict[str, int]:
    """Returns the sizes of a record's ``files``, whatever lies in their place."""
    given = files if isinstance(files, Mapping) else {}
    return {
        str(name): said["bytes"]
        for name, said in given.items()
        if isinstance(said, Mapping) and isinstance(said.get("bytes"), int)
    }


def remove_files(folder: Path, sizes: Mapping[str, int]) -> int:
    """Removes files that are as large as they were noted, and folders that are empty then.

    Args:
        folder: in which they are.
        sizes: bytes of each by its path below the folder.

    Returns:
        The bytes that were removed.
    """
    removed = 0
    for name, size in sizes.items():
        if size_of(folder, name) == size:
            with suppress(OSError):  # another user's
                (folder / name).unlink()
                removed += size
    remove_empty(folder, sizes)
    return removed


def size_of(folder: Path, name: str) -> int | None:
    """Returns the size of a regular file below a folder; ``None`` where there is none, or a link on the way to it."""
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts:
        return None
    place = folder
    try:
        for part in parts[:-1]:
            place = place / part
            if not stat.S_ISDIR(place.lstat().st_mode):
                return None
        found = (place / parts[-1]).lstat()
    except (OSError, ValueError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def remove_empty(folder: Path, names: Iterable[str]) -> None:
    """Removes the folders of some files, by their paths below ``folder``, if nothing is in them; not itself."""
    parents = {parent for name in names for parent in PurePosixPath(name).parents if parent.parts}
    for parent in sorted(parents, key=lambda each: -len(each.parts)):
        if ".." not in parent.parts and not parent.is_absolute():
            with suppress(OSError):  # something else is there, or a link in its place
                (folder / parent).rmdir()
