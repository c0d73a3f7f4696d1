"""All that a method may need to prune a model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from prune_lab.data.samples import Samples
from prune_lab.models.model import PrunableModel
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.resume import FinishedBlocks
from prune_lab.pruning.schedule import Cubic, Schedule
from prune_lab.pruning.target import Target
from prune_lab.training.series import SeriesLog
from prune_lab.training.settings import Training


@dataclass(frozen=True, eq=False)
class PruningContext:
    """All that a method may need to prune a model; most need the first three.

    Args:
        model: changed in place; on the host before and after.
        target: how much goes, in what pattern, and where.
        calibration: the calibration set, and where and in what order blocks see it.
        schedule: how sparsity grows, for methods that train.
        training: how they train.
        samples: reads what they train on, when they ask for it; by default the calibration set.
        seed: for methods that choose at random.
        device: where methods that train do so.
        folder: where they save the states from which an interrupted training goes on; None: nowhere.
        report: is told the losses of held-out samples, by step.
        log: is told the course of a training, see `prune_lab.training.series.Series`.
        finished_blocks: keeps finished blocks, for methods that prune block by block; None: nothing is kept.
    """

    model: PrunableModel
    target: Target
    calibration: Calibration
    schedule: Schedule = field(default_factory=Cubic)
    training: Training = field(default_factory=Training)
    samples: Callable[[], Samples] | None = None
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    folder: Path | None = None
    report: Callable[[int, float], None] | None = None
    log: SeriesLog | None = None
    finished_blocks: FinishedBlocks | None = None

    def training_samples(self) -> Samples:
        """Reads what a method trains on."""
        return Samples(self.calibration.tokens) if self.samples is None else self.samples()
