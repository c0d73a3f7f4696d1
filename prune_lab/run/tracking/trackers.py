"""The trackers of a run as one: the file that every run writes, and the tracker of its configuration beside it."""

import logging
from collections.abc import Callable, Mapping, Sequence

from prune_lab.errors import BadInput
from prune_lab.evaluation.metric import MetricInfo
from prune_lab.run.tracking.jsonl import JsonlTracker
from prune_lab.run.tracking.tracker import RunInfo, Tracker

logger = logging.getLogger(__name__)


class Trackers:
    """A `Tracker` that cannot harm the run: the record holds the results, trackers only show them.

    A tracker that raises is warned about once, and the run goes on. Only `BadInput` gets through, from `prepare` and
    `start`: nothing is lost by then, and the user can set it right.
    """

    def __init__(self, chosen: Tracker) -> None:
        self._members = [chosen] if isinstance(chosen, JsonlTracker) else [JsonlTracker(), chosen]
        self._started: list[Tracker] = []
        self._warned: list[Tracker] = []

    def prepare(self) -> None:
        """Lets each check what it needs, before the work of loading; raises `BadInput`."""
        for member in self._members:
            self._attempt(member, lambda tracker: tracker.prepare())

    def start(self, run: RunInfo) -> None:
        try:
            for member in self._members:
                if self._attempt(member, lambda tracker: tracker.start(run)):
                    self._started.append(member)
        except BadInput:
            self.finish({}, failed=True)
            raise

    def define(self, metrics: Mapping[str, MetricInfo]) -> None:
        for member in self._started:
            self._attempt(member, lambda tracker: tracker.define(metrics))

    def log(self, stage: str, metrics: Mapping[str, float]) -> None:
        for member in self._started:
            self._attempt(member, lambda tracker: tracker.log(stage, metrics))

    def series(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        for member in self._started:
            self._attempt(member, lambda tracker: tracker.series(stage, step, numbers))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        for member in self._started:
            self._attempt(member, lambda tracker: tracker.table(name, columns, rows))

    def finish(self, summary: Mapping[str, float], *, failed: bool) -> None:
        while self._started:
            self._attempt(self._started.pop(), lambda tracker: tracker.finish(summary, failed=failed))

    def _attempt(self, member: Tracker, act: Callable[[Tracker], None]) -> bool:
        try:
            act(member)
        except BadInput:
            raise
        except Exception as error:
            if not any(member is other for other in self._warned):
                self._warned.append(member)
                logger.warning("%s failed, the run goes on: %s: %s", type(member).__name__, type(error).__name__, error)
            return False
        return True
