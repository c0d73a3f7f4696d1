"""Locks between processes, on one machine or on several that share a file system."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

_LOOK_AGAIN = 0.1  # seconds


class Held(Exception):
    """Another process has the lock."""


@contextmanager
def locked(path: Path, *, waiting: str) -> Iterator[bool]:
    """Keeps other processes out meanwhile; waits while another one is in.

    The system releases the lock when a process ends, however it ends. On NFS, Linux makes locks on byte ranges of
    these, which hold between machines. Where no lock can be made, a warning is all that is done; yields whether there
    is one.

    Args:
        path: a file that stands for what is locked; made if need be, and left behind.
        waiting: what to say before a wait.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            logger.info("%s", waiting)
            lock.acquire(poll_interval=_LOOK_AGAIN)
    except (OSError, NotImplementedError) as error:
        _warn(path, error)
    try:
        yield lock.is_locked
    finally:
        lock.release()


@contextmanager
def locked_at_once(path: Path, *, patience: float = 0) -> Iterator[None]:
    """Does the same, but does not wait for others.

    Args:
        path: see `locked`; its folder exists.
        patience: seconds after which another process counts as being in, and not just as looking.

    Raises:
        Held: another process is in.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=patience)
    except Timeout as timeout:
        raise Held from timeout
    except (OSError, NotImplementedError) as error:
        _warn(path, error)
    try:
        yield
    finally:
        lock.release()


def _warn(path: Path, error: Exception) -> None:
    reason = getattr(error, "strerror", None) or str(error)
    logger.warning("%s cannot be locked (%s); other processes may do the same work", path, reason)
