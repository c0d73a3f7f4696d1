"""Which of several processes of a run this is: what ``accelerate launch`` and ``torchrun`` say by the environment."""

import os
from dataclasses import dataclass

from prune_lab.errors import BadInput

_REMEDY = (
    "start several processes with accelerate launch or torchrun, which set RANK, LOCAL_RANK and WORLD_SIZE, or unset "
    "these variables for one process"
)


@dataclass(frozen=True)
class Processes:
    """This process among those of a run.

    Attributes:
        rank: its number among all of them, from 0; the first one writes the results.
        local_rank: its number among those of this machine, which is that of its GPU.
        count: how many there are.
    """

    rank: int = 0
    local_rank: int = 0
    count: int = 1


def processes() -> Processes:
    """Reads ``RANK``, ``LOCAL_RANK`` and ``WORLD_SIZE``; one that is empty counts as not set.

    Raises:
        BadInput: they do not fit each other. The work of a process that wrongly takes itself for a second one would be
            lost, as only the first one writes.
    """
    rank, local_rank, count = (_number(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    for name, value in (("RANK", rank), ("LOCAL_RANK", local_rank)):
        if value and count is None:
            raise BadInput(f"{name}={value} in the environment is not allowed without WORLD_SIZE; {_REMEDY}")
        if value is not None and count is not None and value >= count:
            raise BadInput(
                f"{name}={value} in the environment is not allowed with WORLD_SIZE={count}; allowed: 0 to "
                f"{count - 1}; {_REMEDY}"
            )
    if count is not None and count > 1 and rank is None:
        raise BadInput(f"WORLD_SIZE={count} in the environment is not allowed without RANK; {_REMEDY}")
    return Processes(rank or 0, local_rank or 0, count or 1)


def _number(name: str) -> int | None:
    text, least = os.environ.get(name, "").strip(), 1 if name == "WORLD_SIZE" else 0
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= least):
        raise BadInput(
            f"{name}={text[:80]!r} in the environment is not allowed; allowed: whole numbers of at least {least}; "
            f"{_REMEDY}"
        )
    return int(text)
