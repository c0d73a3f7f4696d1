"""Tables and pages that commands write, outside run folders: they replace earlier ones, and no files of others.

A folder of results may be copied, or come from a repository, so that no notes beside the files say who wrote them. What
says it is in the files themselves.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from prune_lab.errors import BadInput

_LOOK = 2**20  # bytes at the beginning and at the end of a file in which its mark is looked for


def refuse_foreign(folder: Path, marks: Mapping[str, str], remedy: str) -> None:
    """Makes sure that a command replaces only what the lab has written.

    Args:
        folder: into which it will write.
        marks: by the path of each file below it, a text that all such files of the lab have, whatever the version.
        remedy: how another folder is given.

    Raises:
        BadInput: something else has one of these names; an empty file does not count.
    """
    foreign = [name for name, mark in marks.items() if not _is_own(folder / name, mark.encode())]
    if foreign:
        raise BadInput(
            f"the folder {folder} holds {', '.join(foreign)}, which the lab has not written there and would replace; "
            f"{remedy}, or move {'it' if len(foreign) == 1 else 'them'} away"
        )


def check_writable(folder: Path, what: str, remedy: str) -> None:
    """Makes sure, before the work, that its results can be written; makes no folder, as there may be no results.

    Args:
        folder: the folder.
        what: that is to be written: ``--results DIR``.
        remedy: how another folder is given.

    Raises:
        BadInput: nothing can be written there.
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise BadInput(f"{what}: the folder {folder} cannot be written ({error.strerror}); {remedy}") from error


def _is_own(path: Path, mark: bytes) -> bool:
    if not os.path.lexists(path):
        return True
    if not path.is_file():  # to open a FIFO is to wait
        return False
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(_LOOK)
            file.seek(max(0, size - _LOOK))
            return size == 0 or mark in start or mark in file.read()
    except OSError:
        return False
