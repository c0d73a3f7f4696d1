"""Where a study is kept: a journal that one process uses at a time, or a database."""

import json
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from prune_lab.errors import BadInput

logger = logging.getLogger(__name__)

_SQLITE = b"SQLite format 3\0"


@contextmanager
def opened(storage: str, cwd: Path) -> Iterator[BaseStorage]:
    """Opens the storage of the command that searches.

    Args:
        storage: the path of a journal, which is made if need be, or a URL.
        cwd: what a path is relative to.

    Raises:
        BadInput: it cannot be opened, another process uses the journal, or a file of something else is there, which is
            left as it is.
    """
    if "://" in storage:
        _check_database(storage)
        yield connect(storage, cwd)
        return
    path = cwd / Path(storage).expanduser()
    _check_journal(path)
    with _alone(path):
        _drop_torn_line(path)
        yield connect(storage, cwd)


def connect(storage: str, cwd: Path) -> BaseStorage:
    """Opens a storage that the command which searches has opened already: for its jobs.

    Raises:
        BadInput: it cannot be opened.
    """
    _quiet()
    try:
        if "://" in storage:
            return RDBStorage(storage)
        return JournalStorage(JournalFileBackend(str(cwd / Path(storage).expanduser())))
    except Exception as error:  # by the database, its driver, or the lack of one; by a journal of wrong content
        reason = (str(error) or "damaged").splitlines()[0]
        raise BadInput(f"hydra.sweeper.storage={storage} cannot be opened: {type(error).__name__}: {reason}") from None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Locks the journal itself; the system lets go of the lock when the process ends, however it ends."""
    import fcntl  # not on Windows, where a URL works

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise BadInput(f"hydra.sweeper.storage={path} cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(
                f"the study in {path} is being searched by another process; wait for it, use another "
                "hydra.sweeper.study_name, or share one through a database (hydra.sweeper.storage=postgresql://...)"
            ) from error
        yield


def _check_journal(path: Path) -> None:
    """Whether a journal may be written here; what is in the way is read, and no more.

    Raises:
        BadInput: something else is there, or a damaged journal.
    """
    if not path.exists():
        return
    if not path.is_file():
        raise _foreign(path, "it is no file")
    try:
        *lines, _ = path.read_bytes().split(b"\n")  # the last is empty, or was being written when a process died
    except OSError as error:
        raise BadInput(f"hydra.sweeper.storage={path} cannot be read: {error.strerror}") from error
    if not lines and path.stat().st_size and not path.read_bytes().startswith(b'{"op_code":'):
        raise _foreign(path, "it is no journal of a study")
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict) or not {"op_code", "worker_id"} <= set(entry):
            raise _foreign(path, "it is no journal of a study" if number == 1 else f"line {number} is damaged")


def _check_database(url: str) -> None:
    """Whether the file that a URL of SQLite names is a database of studies, or is to be one.

    Raises:
        BadInput: it is something else.
    """
    scheme, _, rest = url.partition("://")
    path = Path(rest.removeprefix("/").partition("?")[0])
    if scheme.partition("+")[0] != "sqlite" or not path.exists() or (path.is_file() and not path.stat().st_size):
        return
    if not path.is_file():
        raise _foreign(path, "it is no file")
    with path.open("rb") as file:
        if file.read(len(_SQLITE)) != _SQLITE:  # SQLite itself takes a file of a byte for a new database
            raise _foreign(path, "it is no database of SQLite")
    try:
        with sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        database.close()
    except sqlite3.Error as error:
        raise _foreign(path, f"it is a damaged database ({error})") from error
    if tables and "studies" not in tables:
        raise _foreign(path, f"it is a database of something else, with the tables {', '.join(sorted(tables)[:5])}")


def _foreign(path: Path, why: str) -> BadInput:
    return BadInput(
        f"hydra.sweeper.storage={path} is not used: {why}, and nothing was changed in it; give a new file, or that "
        "of a study (sqlite:///FILE for a database)"
    )


def _drop_torn_line(path: Path) -> None:
    """Cuts off the line that a process was writing when it died; Optuna could not read what came behind it."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        logger.warning("%s ended in the middle of a line, which is dropped", path)
        with path.open("r+b") as file:
            file.truncate(whole)


def _quiet() -> None:
    """Lets our own lines say what happens, and Optuna's warnings through the ordinary log."""
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
