"""Locks between processes, on one machine or on several that share a file system."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def locked(path: Path, *, waiting: str) -> Iterator[None]:
    """Keeps other processes out meanwhile; waits while another one is in.

    The system lets go of the lock when a process ends, however it ends. On NFS, Linux makes locks on byte ranges of
    these, which hold between machines. Where no lock can be made, a warning is all that
    is done.

    Args:
        path: a file that stands for what is locked; made if need be, and left behind.
        waiting: what to say before a wait.
    """
    import fcntl  # not on Windows

    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("%s", waiting)
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            logger.warning("%s cannot be locked (%s); other processes may do the same work", path, error.strerror)
        yield
