"""Gradual random pruning: the baseline of every score."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.models.units import Units
from prune_lab.pruning.methods.trained import TrainedMethod


@dataclass
class GradualRandom(TrainedMethod):
    """Masks units in a random order that the seed fixes at the start.

    Source: Santacroce et al., 2023, arXiv:2302.03773.
    """

    for_encoders: ClassVar[bool] = True

    def first_scores(self, units: Units, generator: torch.Generator) -> Tensor:
        """Draws scores, uniform in [0, 1)."""
        return torch.rand(units.shape, generator=generator)
