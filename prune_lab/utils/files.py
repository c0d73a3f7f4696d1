"""Writes files so that a reader sees either the old content or the whole new one; reads files that may be anything."""

import csv
import fcntl
import io
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_FICLONE = 0x40049409  # Linux' request for a copy that shares blocks until either file is written to


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets ``write`` fill a temporary file beside ``path``, flushes it to disk, and renames it to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        flush(temporary)
        share(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` as UTF-8, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: object) -> None:
    """Writes ``value`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Writes rows under their column names."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_text(path, text.getvalue())


def read_regular(path: Path, most: int) -> str:
    """Reads a text in UTF-8 from a place where there may be anything, a FIFO without a writer for example.

    Args:
        path: of the file.
        most: the bytes that it may have.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no regular file, larger, or not in UTF-8; the message goes on after "it".
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError("is no regular file")
        with os.fdopen(handle, "rb", closefd=False) as file:
            content = file.read(most + 1)
    finally:
        os.close(handle)
    if len(content) > most:
        raise ValueError(f"has more than {most:,} bytes, which are the most that are read")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not in UTF-8: {error.reason} at byte {error.start}") from error


def clone(source: Path, target: Path) -> None:
    """Copies a file; on file systems that can, its blocks are shared until one of the two is written to.

    The two are never one file (a hard link): what is done to one does not show in the other.

    Args:
        source: is left as it is.
        target: replaced, atomically.
    """

    def copy(temporary: Path) -> None:
        with source.open("rb") as read, temporary.open("wb") as written:
            try:
                fcntl.ioctl(written, _FICLONE, read.fileno())
            except OSError:  # another file system, or one that cannot
                shutil.copyfileobj(read, written, 2**20)

    write_atomically(target, copy)


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Gives a folder to write into, which takes its place when it is complete and on the disk, or vanishes.

    Args:
        folder: the place; what is there is replaced.
    """
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield temporary
        share(temporary)
        for each in (*temporary.rglob("*"), temporary):
            flush(each)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def flush(path: Path) -> None:
    """Flushes a file or a folder's list of names to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def share(path: Path) -> None:
    """Gives a file, or a folder with all that is below it, the permissions that the umask asks for.

    Temporary files and those of safetensors are private (0600); results are meant to be shared.
    """
    free = ~_umask()
    for each in (path, *path.rglob("*")) if path.is_dir() else (path,):
        each.chmod((0o777 if each.is_dir() else 0o666) & free)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
