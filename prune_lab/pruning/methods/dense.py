"""No pruning at all: the baseline of every table, through the same pipeline."""

from dataclasses import dataclass

from prune_lab.models.model import PrunableModel
from prune_lab.pruning.calibration.blocks import Calibration
from prune_lab.pruning.masks import Masks
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.target import Target


@dataclass
class Dense(Method):
    """Leaves the model as it is, whatever the target says."""

    def prune(self, model: PrunableModel, calibration: Calibration, target: Target) -> Masks:
        """Prunes nothing."""
        return Masks()
