"""Wanda for neurons and heads (Wanda-sp): scores of single weights, added up over what belongs to a unit."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prune_lab.models.units import Units
from prune_lab.pruning.calibration.statistics import InputNorm
from prune_lab.pruning.methods.unitwise import ScoredUnits


@dataclass
class WandaUnits(ScoredUnits):
    """Scores a unit by the sum of ``|W_ij| ||x_j||`` over the weights that read it; nothing else changes.

    Source: Wanda-sp, the structured baseline in FLAP (An et al., 2024, arXiv:2312.11983), after Wanda
    (arXiv:2306.11695). Its code averages over the rows of the down-projection and adds up over a head's columns, which
    orders the units of a layer alike. With ``scope=model`` scores are standardised in each layer, which the authors'
    code does for FLAP only.
    """

    statistic: ClassVar = InputNorm

    def columns(self, units: Units, statistic: InputNorm) -> Tensor:
        """Returns the sums over rows, ``(in,)`` float32."""
        return units.reader.linear.weight.float().abs().sum(0) * statistic.value
