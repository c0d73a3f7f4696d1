"""Metrics as lines of JSON in the run folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from prune_lab.evaluation.metric import MetricInfo
from prune_lab.run import artifacts
from prune_lab.run.tracking.tracker import RunInfo


@dataclass
class JsonlTracker:
    """Appends lines to ``metrics.jsonl``, each at once.

    For every stage there is one with what it measured, ``{"time": ..., "stage": ..., "stage/x": 1.0}``; and while a
    stage trains, every few steps, one with the course of it, which has a ``step``:
    ``{"time": ..., "stage": ..., "step": 10, "training/loss": 2.5, ...}``.

    Times are UTC in ISO 8601. Tables are not repeated here, they have files of their own in the run folder; nor is the
    summary, which the record holds. A run that is started again in the same folder appends to the lines of the first.
    """

    _path: Path | None = field(default=None, init=False, repr=False)

    def prepare(self) -> None:
        """Needs nothing."""

    def start(self, run: RunInfo) -> None:
        self._path = run.folder / artifacts.METRICS
        self._path.touch()

    def define(self, metrics: Mapping[str, MetricInfo]) -> None:
        """Ignores it: the record has the descriptions."""

    def log(self, stage: str, metrics: Mapping[str, float]) -> None:
        self._append({"stage": stage, **metrics})

    def series(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        self._append({"stage": stage, "step": step, **numbers})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Ignores it: see the class."""

    def finish(self, summary: Mapping[str, float], *, failed: bool) -> None:
        self._path = None

    def _append(self, what: Mapping[str, object]) -> None:
        if self._path is None:
            raise RuntimeError("log before start")
        time = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps({"time": time, **what}, default=float)  # float: a number of NumPy or torch
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
