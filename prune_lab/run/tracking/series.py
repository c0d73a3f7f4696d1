"""The course of a run's trainings, for its trackers: one series, in which the steps of a later training follow."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from prune_lab.run.tracking.trackers import Trackers
from prune_lab.training.series import SeriesLog

PREFIX = "training/"
"""How the names begin, which no stage has."""


@dataclass
class RunSeries:
    """Tells the trackers of a run what its trainings tell.

    Args:
        trackers: that have been started.
    """

    trackers: Trackers
    _last: int = field(default=0, init=False)
    _before: int = field(default=0, init=False)  # steps of the trainings before

    def of(self, stage: str) -> SeriesLog:
        """What takes the numbers of the trainings of a stage."""

        def log(step: int, numbers: Mapping[str, float]) -> None:
            if step + self._before <= self._last:  # another training has begun
                self._before = self._last
            self._last = step + self._before
            self.trackers.series(stage, self._last, {f"{PREFIX}{name}": value for name, value in numbers.items()})

        return log
