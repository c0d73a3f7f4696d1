"""RIA: drops the weights of least importance relative to their row and column, scaled by their input."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.calibration.statistics import InputNorm
from prune_lab.pruning.masks import zeros_in
from prune_lab.pruning.methods.layerwise import LayerwiseMethod
from prune_lab.pruning.methods.selection import SCOPES, keep_in_scope
from prune_lab.pruning.solvers.channels import channel_order, keep_in_order
from prune_lab.pruning.target import Target
from prune_lab.utils.checks import check_choice, check_flag, check_number
from prune_lab.utils.extras import check_extra


@dataclass
class RIA(LayerwiseMethod):
    """Scores each weight by its share of its row and of its column, times a power of the norm of its input.

    The score is ``(|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) * ||x_j||^power``; the kept weights do not change.

    Args:
        power: of the norm of the input; 0 leaves the data out.
        scope: where weights compete. ``layer``: ``floor(s * out * in)`` of the layer go; ``row``: ``floor(s * in)`` of
            every row. An N:M pattern compares within its groups in any case.
        permute: whether an N:M pattern may hold for the input channels in another order, one for each weight, so that
            it keeps more of the score (`prune_lab.pruning.solvers.channels`). The weights stay where they are; the
            order is in ``PruningResult.channel_orders`` and, after a run, beside the masks. Other patterns have none.

    Source: Zhang et al., ICLR 2024, "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language
    Models". The authors' code compares over the layer unless ``--per_outneuron`` is given, and drops every weight up to
    and including the cut, one more than asked. It deals channels out to the groups back and forth, here they are dealt
    in one direction; it always uses the order that it finds, here the natural one stays where it keeps more. Its
    ``--fast`` makes the assignments within 4 to 16 parts of the channels, here all groups take part.
    """

    for_encoders: ClassVar[bool] = True

    power: float = 0.5
    scope: str = "layer"
    permute: bool = False
    statistic: ClassVar = InputNorm

    def __post_init__(self) -> None:
        check_number(self, "power", least=0)
        check_choice(self, "scope", SCOPES)
        check_flag(self, "permute")
        if self.permute:
            check_extra("scipy", "permute", "{at}.permute=true needs scipy", self, otherwise="leave it out")

    @property
    def keeps_order(self) -> bool:
        """Returns whether ``permute`` is off."""
        return not self.permute

    def solve(self, linear: PrunableLinear, prepared: InputNorm, target: Target) -> Tensor:
        """Cuts the scores within the scope, or within the groups of a better order of the channels."""
        return self.solve_in_order(linear, prepared, target)[0]

    def solve_in_order(
        self, linear: PrunableLinear, prepared: InputNorm, target: Target
    ) -> tuple[Tensor, Tensor | None]:
        """Cuts likewise, and returns the order with the weight."""
        scores = relative_importance(linear.weight) * prepared.value**self.power  # (out, in) * (in,)
        if not (self.permute and target.n_of_m):
            zero = zeros_in(linear.weight)
            return linear.weight * keep_in_scope(scores, target, linear.name, self.scope, zero), None
        order = channel_order(scores, *target.n_of_m)  # (in,)
        return linear.weight * keep_in_order(scores, order, *target.n_of_m), order


def relative_importance(weight: Tensor) -> Tensor:
    """Returns each weight's share of its column plus that of its row, ``(out, in)`` float32; 0 where both are empty."""
    size = weight.abs().float()
    tiny = torch.finfo(size.dtype).tiny
    return size / size.sum(0).clamp_min(tiny) + size / size.sum(1, keepdim=True).clamp_min(tiny)
