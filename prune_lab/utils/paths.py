"""Paths as users write them: ``~`` is a home folder, and what names nothing may be a pattern."""

import errno
import glob
import os
from collections.abc import Iterator
from itertools import islice, takewhile
from pathlib import Path

_NOT_THERE = {errno.ENOENT, errno.ENOTDIR}
_SHOWN = 200  # characters of a path in a message


MOST_FILES = 200_000
"""So many entries below what one text names are looked at, which takes a second or two."""
MOST_FOLDERS = 10_000
"""Likewise of folders: to look into one costs as much as looking at ten files, and whole systems have more of them."""


class TooManyFiles(Exception):
    """There are more files or folders below a path than are looked at."""

    def __init__(self, most: int, what: str = "files") -> None:
        super().__init__(
            f"more than {most:,} {what} lie there, and a run is known by all of its input files; name the file, or a "
            "folder with nothing else in it"
        )


def local_path(path: str | os.PathLike[str]) -> Path:
    """Returns the path that a text stands for: ``~`` and ``~NAME`` at its start are home folders, as in a shell.

    Every setting of the lab that names a file or a folder of this machine goes through here.
    """
    return Path(os.path.expanduser(path))  # Path.expanduser raises where there is no such user


def named_paths(path: str, most: int = MOST_FILES) -> list[Path]:
    """Returns what a text names: the file or folder of that very name, else what it matches as a pattern.

    Brackets, ``*`` and ``?`` are thus letters like any other where something has them in its name.

    Args:
        path: of a file or a folder, or a pattern with ``*``, ``?``, ``[...]`` or ``**``; see `local_path`.
        most: so many files are looked at.

    Returns:
        The paths, sorted; none where there is nothing.

    Raises:
        TooManyFiles: a pattern matches more than that, or so many lie where ``**`` has to look for matches.
    """
    given = local_path(path)
    try:
        if os.path.lexists(given):
            return [given]
        if "**" in given.parts:  # the search itself says nothing while it finds nothing
            for _ in regular_files(Path(*takewhile(lambda part: not glob.has_magic(part), given.parts)), most):
                pass
        found = list(islice(glob.iglob(str(given), recursive=True), most + 1))
    except ValueError:  # a zero byte, or half of a surrogate pair: no file system has such a name
        return []
    if len(found) > most:
        raise TooManyFiles(most)
    return sorted(map(Path, found))


def why_missing(path: str, what: str = "file", *, pattern: bool = False) -> str:
    """Says why a text names nothing: because nothing is there, or because the system does not let us look.

    Args:
        path: see `local_path`.
        what: should be there.
        pattern: whether `named_paths` has looked for it.
    """
    try:
        os.stat(local_path(path))
    except OSError as error:
        if error.errno not in _NOT_THERE:
            return f"cannot be read ({error.strerror})"
    except ValueError as error:
        return f"cannot be the name of a file ({error})"
    return f"there is no such {what}" + (", and no file matches it as a pattern" if pattern else "")


def shown_path(path: str) -> str:
    """A path for a message, without its middle where it is absurdly long."""
    return path if len(path) <= _SHOWN else f"{path[: _SHOWN // 2]}...({len(path)} characters)"


def regular_files(
    path: Path, most: int = MOST_FILES, most_folders: int = MOST_FOLDERS
) -> Iterator[tuple[str, os.stat_result]]:
    """Yields every regular file at or below a path, with what the system says about it; links are followed.

    Pipes, sockets and devices are no files here, and what cannot be looked at is left out. A folder that is reached in
    two ways, or contains itself by a link, counts once.

    Args:
        path: of a file or a folder.
        most: so many files, folders and others are looked at.
        most_folders: so many folders are looked into.

    Raises:
        TooManyFiles: there are more of them.
    """
    looked_at, seen, folders = 0, set(), [os.fspath(path)]
    if path.is_file():
        yield os.fspath(path), path.stat()
        return
    while folders:
        folder = folders.pop()
        try:
            state = os.stat(folder)
            if (state.st_dev, state.st_ino) in seen:
                continue
            seen.add((state.st_dev, state.st_ino))
            if len(seen) > most_folders:
                raise TooManyFiles(most_folders, "folders")
            with os.scandir(folder) as listed:
                entries = list(islice(listed, most - looked_at + 1))
        except OSError:
            continue
        looked_at += len(entries)
        if looked_at > most:
            raise TooManyFiles(most)
        for entry in sorted(entries, key=lambda entry: entry.name):
            try:
                if entry.is_dir():
                    folders.append(entry.path)
                elif entry.is_file():
                    yield entry.path, entry.stat()
            except OSError:  # a link that leads nowhere, or a file that is gone by now
                continue
