"""What becomes of a command whose reader has gone: ``prune-lab --help | head -1``."""

import os
import select
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

READER_GONE = 141
"""The exit status: what a shell gives a program that the signal SIGPIPE (13) has ended, 128 + 13."""

P = ParamSpec("P")
T = TypeVar("T")


def ends_with_its_reader(main: Callable[P, T]) -> Callable[P, T]:
    """Lets a command end without a word where nobody reads its output any more.

    Args:
        main: of the command; where it catches `OSError`, it lets `BrokenPipeError` through.
    """

    @wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            try:
                return main(*args, **kwargs)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()  # here, and not when Python ends, where nobody can catch it
        except BrokenPipeError:
            if not _is_gone():
                raise
            sys.exit(READER_GONE)

    return wrapped


def _is_gone() -> bool:
    """Whether the pipe that broke is the output; it leads nowhere from then on, as Python flushes it once more."""
    try:
        output, poll = sys.stdout.fileno(), select.poll()
    except (AttributeError, OSError, ValueError):  # no output, one in memory, one that is closed; no poll on Windows
        return False
    poll.register(output, 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output)
    os.close(nowhere)
    return True
