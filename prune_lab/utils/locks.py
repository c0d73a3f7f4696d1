"""Locks between processes, on one machine or on several that share a file system."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

_LOOK_AGAIN = 0.1  # seconds


@contextmanager
def locked(path: Path, *, waiting: str) -> Iterator[None]:
    """Keeps other processes out meanwhile; waits while another one is in.

    The system releases the lock when a process ends, however it ends. On NFS, Linux makes locks on byte ranges of
    these, which hold between machines. Where no lock can be made, a warning is all that is done.

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
        reason = getattr(error, "strerror", None) or str(error)
        logger.warning("%s cannot be locked (%s); other processes may do the same work", path, reason)
    try:
        yield
    finally:
        lock.release()
