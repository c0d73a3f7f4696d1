"""Something that can be removed."""

from dataclasses import dataclass
from pathlib import Path

STORE, RUNS = "store", "runs"
PLACES = (STORE, RUNS)
RUNNING, INTERRUPTED = "running", "interrupted"
KEPT, DAMAGED, UNFINISHED = "kept", "damaged", "unfinished"


@dataclass(frozen=True)
class Item:
    """An entry of the store, or a run.

    Attributes:
        place: where it was found, one of `PLACES`.
        kind: what it is, in words.
        status: of a run that of its record, or ``interrupted``, ``running``; of an entry ``kept``, ``damaged``,
            ``unfinished``.
        path: its folder.
        bytes: that removing it gives back.
        changed: when it was last written, or used, in seconds since 1970.
    """

    place: str
    kind: str
    status: str
    path: Path
    bytes: int
    changed: float
