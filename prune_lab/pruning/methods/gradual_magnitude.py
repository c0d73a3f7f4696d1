"""Gradual magnitude pruning: masks the smallest weights, or the units with the smallest."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from prune_lab.errors import BadSetting
from prune_lab.models.units import Neurons, Units
from prune_lab.pruning.live_mask import LiveMasks, UnitMask, weight_before_mask
from prune_lab.pruning.methods.method import Reaches
from prune_lab.pruning.methods.trained import TrainedMethod
from prune_lab.pruning.target import Target
from prune_lab.utils.checks import check_choice, check_flag


@dataclass
class GradualMagnitude(TrainedMethod):
    """Scores a unit by the norm of its weights in all matrices together; a single weight by its absolute value.

    Args:
        order: of the norm, 1 or 2.
        shared: whether the parts of a neuron in the up- and in the down-projection have one score. ``false`` repeats
            the authors' code, which scores them apart, so that a neuron may be cut in one and kept in the other; one
            that is cut in either computes nothing, so that more than asked for are gone.

    Source: the L2 baseline of Santacroce et al., 2023, arXiv:2302.03773. Single weights: Zhu and Gupta, 2017,
    arXiv:1710.01878.
    """

    for_encoders: ClassVar[bool] = True

    order: float = 2.0
    shared: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "order", (1, 2))
        check_flag(self, "shared")

    @property
    def reaches(self) -> Reaches:
        """Returns that parts that are cut apart take more neurons than were asked for."""
        return "level" if self.shared else "at least"

    def check(self, target: Target) -> None:
        """Refuses ``shared=false`` where units have no parts that can be scored apart."""
        if not self.shared and target.kind != "neurons":
            raise BadSetting(self, "shared", f"is for sparsity=neurons, not for {target.kind}; leave it out")

    def masks_of(self, units: Units, generator: torch.Generator) -> Sequence[UnitMask]:
        """Returns one mask, or one for rows and one for columns."""
        if self.shared or not isinstance(units, Neurons):
            return super().masks_of(units, generator)
        parts = {
            part: replace(units, members=tuple(member for member in units.members if member.dim == dim))
            for dim, part in enumerate(("up", "down"))
        }
        return [
            UnitMask(some, self.first_scores(some, generator), learned=False, part=part) for part, some in parts.items()
        ]

    @torch.no_grad()
    def refresh(self, live: LiveMasks) -> None:
        """Computes the norms of the weights as they are under the masks."""
        for mask in live:
            mask.scores.copy_(mask.units.norm(self.order, weight_before_mask))
