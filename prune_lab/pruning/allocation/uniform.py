"""Uniform: one level for all layers."""

from dataclasses import dataclass
from typing import ClassVar

from prune_lab.models.model import PrunableModel
from prune_lab.pruning.allocation.allocation import Allocation, Workplace
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.target import Target


@dataclass
class Uniform(Allocation):
    """Removes the same fraction of every layer, ``sparsity.level``; the default, and the only one for N:M."""

    for_encoders: ClassVar[bool] = True
    divides_time: ClassVar[bool] = True

    def budget(
        self, model: PrunableModel, calibration: Calibration, target: Target, place: Workplace | None = None
    ) -> dict[str, float]:
        """None: the target's level holds."""
        return {}
