"""Keeps, of the models of a sweep, that of the best job: ``keep_models=best``."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prune_lab.run import artifacts
from prune_lab.run.removal import remove_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Candidate:
    cost: float  # lower is better
    folder: Path
    own: bool  # whether this sweep has written its model


@dataclass
class BestModel:
    """Removes the model of a job that has ended, or of the one that was best before, whichever is worse.

    Args:
        objective: the metric that decides.
        better: ``lower`` or ``higher``; ``None``: as the metric describes itself.
    """

    objective: str
    better: str | None = None
    removed: int = field(default=0, init=False)  # bytes
    _best: _Candidate | None = field(default=None, init=False)

    def ended(self, folder: Path, record: Mapping[str, Any], *, own: bool = True) -> None:
        """Takes a job that has ended.

        Args:
            folder: of the job.
            record: that it has left.
            own: whether this sweep has written what is there; what was there before stays.
        """
        value = record["metrics"].get(self.objective)
        if record["status"] != artifacts.FINISHED:
            return
        if value is None:
            logger.warning("keep_models=best keeps the model in %s: its run has no %s", folder, self.objective)
            return
        from prune_lab.run.metric_info import infos_of  # torch: this module is imported at every start

        better = self.better or infos_of(dict(record))[self.objective].better
        if better is None:
            logger.warning("keep_models=best keeps the model in %s: no value of %s is best", folder, self.objective)
            return
        cost = value if better == "lower" else -value
        new = _Candidate(cost if math.isfinite(value) else math.inf, folder, own)
        before, self._best = self._best, new
        if before is not None:
            self._best, worse = (before, new) if before.cost <= new.cost else (new, before)
            if worse.own:
                self.removed += remove_model(worse.folder)

    @property
    def kept(self) -> Path | None:
        """The folder of the best job so far."""
        return self._best.folder if self._best else None
