"""What a tracker is, and what it is told about a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from prune_lab.evaluation.metric import MetricInfo


@dataclass(frozen=True)
class RunInfo:
    """What a tracker is told when a run starts.

    Attributes:
        folder: the run folder; it exists.
        config: the resolved configuration in plain containers.
        name: what a reader calls the run.
        group: the sweep it belongs to; None outside one.
        tags: words to find it by.
        kind: of run: ``run``, or ``report`` of many.
    """

    folder: Path
    config: Mapping[str, object]
    name: str
    group: str | None = None
    tags: Sequence[str] = ()
    kind: str = "run"


class Tracker(Protocol):
    """Receives a run's numbers as they come; `finish` follows every `start` that returned, also when the run failed."""

    def prepare(self) -> None:
        """Checks whether it can be used as the user configured it, and begins nothing; raises `BadInput` if not."""

    def start(self, run: RunInfo) -> None:
        """Opens the tracker; raises `BadInput` if it cannot be used as the user configured it."""

    def define(self, metrics: Mapping[str, MetricInfo]) -> None:
        """Takes the descriptions of metrics, under their full names, before their values."""

    def log(self, stage: str, metrics: Mapping[str, float]) -> None:
        """Takes what a stage measured, under full names: ``{"prune/sparsity": 0.5}``."""

    def series(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """Takes the course of a training, under full names: ``{"training/loss": 2.5}`` after so many steps."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Takes a table, such as the one with a row per weight."""

    def finish(self, summary: Mapping[str, float], *, failed: bool) -> None:
        """Takes the final numbers and closes the tracker."""
