"""What the processes of a run compute together; each function returns at once where a process works alone.

All processes of the group must call the same functions in the same order. Sums are those of torch's backends: the same
bits in every process, and for one number of processes the same at every start.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed

from prune_lab.errors import Reported
from prune_lab.utils.group import current

_KINDS = (RuntimeError, ValueError)  # what backends raise


def rank() -> int:
    """The number of this process in its group; 0 where it works alone."""
    group = current()
    return 0 if group is None else group.rank


def count() -> int:
    """How many processes compute together."""
    return 1 if current() is None or not distributed.is_initialized() else distributed.get_world_size()


def own_share(total: int) -> slice:
    """Which of ``total`` things in order are this process' own; shares differ by at most one."""
    return share_of(total, rank(), count())


def share_of(total: int, rank: int, count: int) -> slice:
    """Which of ``total`` things in order belong to one of ``count`` processes."""
    return slice(total * rank // count, total * (rank + 1) // count)


def add_up(tensors: Iterable[Tensor]) -> None:
    """Adds up each tensor over all processes, in place; all processes have the same sums afterwards.

    Args:
        tensors: contiguous, of the same shapes in all processes.
    """
    if count() > 1:
        for tensor in tensors:
            with _naming_the_lost():
                distributed.all_reduce(tensor)


def hand_out(tensor: Tensor, source: int) -> None:
    """Gives all processes what one of them has in ``tensor``, which is contiguous, in place."""
    if count() > 1:
        with _naming_the_lost():
            distributed.broadcast(tensor, source)


def gather(value: Any) -> list[Any]:
    """What each process has given, in the order of their numbers; a small object that can be pickled.

    The processes of a run trust each other: they run the same code by the same user.
    """
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    with _naming_the_lost():
        distributed.all_gather_object(found, value)
    return found


@contextmanager
def naming_who_is_lost() -> Iterator[None]:
    """Tells which process is lost where a library computes with all of them inside; other errors stay as they are.

    Raises:
        RunFailed: an error of torch's, and a process is gone.
    """
    try:
        yield
    except _KINDS as error:
        group = current()
        if group is None or isinstance(error, Reported | torch.OutOfMemoryError) or group.lost() is None:
            raise
        raise group.loss(error) from error


@contextmanager
def _naming_the_lost() -> Iterator[None]:
    group = current()
    try:
        yield
    except _KINDS as error:
        if group is None or isinstance(error, torch.OutOfMemoryError):
            raise
        raise group.loss(error) from error
