"""Where a study is kept: a journal that one process uses at a time, or a database."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from prune_lab.errors import BadInput

logger = logging.getLogger(__name__)


@contextmanager
def opened(storage: str, cwd: Path) -> Iterator[BaseStorage]:
    """Opens the storage of the command that searches.

    Args:
        storage: the path of a journal, which is made if need be, or a URL.
        cwd: what a path is relative to.

    Raises:
        BadInput: it cannot be opened, or another process uses the journal.
    """
    if "://" in storage:
        yield connect(storage, cwd)
        return
    path = cwd / storage
    with _alone(path):
        _drop_torn_line(path)
        yield connect(storage, cwd)


def connect(storage: str, cwd: Path) -> BaseStorage:
    """Opens a storage that the command which searches has opened already: for its jobs.

    Raises:
        BadInput: it cannot be opened.
    """
    _quiet()
    if "://" not in storage:
        return JournalStorage(JournalFileBackend(str(cwd / storage)))
    try:
        return RDBStorage(storage)
    except Exception as error:  # by the database, its driver, or the lack of one
        reason = str(error).splitlines()[0]
        raise BadInput(
            f"hydra.sweeper.storage={_without_password(storage)} cannot be opened: {type(error).__name__}: {reason}"
        ) from None


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
                "hydra.sweeper.study, or share one through a database (hydra.sweeper.storage=postgresql://...)"
            ) from error
        yield


def _drop_torn_line(path: Path) -> None:
    """Cuts off the line that a process was writing when it died; Optuna could not read what came behind it."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        logger.warning("%s ended in the middle of a line, which is dropped", path)
        with path.open("r+b") as file:
            file.truncate(whole)


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}://{user.partition(':')[0]}{':***' if ':' in user else ''}{at}{host}"


def _quiet() -> None:
    """Lets our own lines say what happens, and Optuna's warnings through the ordinary log."""
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
