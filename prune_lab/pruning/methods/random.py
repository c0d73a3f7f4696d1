"""Random pruning: the floor that every other method has to beat."""

import zlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.errors import BadSetting
from prune_lab.models.units import Units
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.masks import Masks, zeros_in
from prune_lab.pruning.methods.data_free import DataFreeMethod
from prune_lab.pruning.methods.selection import keep_in_layer, keep_units
from prune_lab.pruning.target import Target
from prune_lab.utils.checks import check_choice

SCOPES = ("layer", "model")


@dataclass
class Random(DataFreeMethod):
    """Drops a random choice of each layer's weights, neurons or heads, or of the blocks: exactly ``floor(s * n)``.

    Scores depend on the run's ``seed`` and the name of the layer only, so that within layers the choice is the same
    whatever else is pruned.

    Args:
        scope: where neurons and heads are drawn from: those of a block (``layer``) or of all blocks (``model``), which
            also removes a quarter of heads that come in threes and leaves each block one. Weights are drawn within
            their layer.
    """

    for_encoders: ClassVar[bool] = True

    scope: str = "layer"

    def __post_init__(self) -> None:
        check_choice(self, "scope", SCOPES)

    @property
    def allocation_conflict(self) -> str | None:
        """Returns why one draw from the whole model cannot follow one."""
        return (
            None if self.scope == "layer" else "draws from the whole model; use allocation=uniform, or {at}.scope=layer"
        )

    def check(self, target: Target) -> None:
        """Refuses to draw weights from the whole model."""
        super().check(target)
        if self.scope == "model" and not target.removes_units:
            raise BadSetting(self, "scope", "is for neurons and heads; weights are drawn in layers: {at}.scope=layer")

    def select_mask(self, linears: list[PrunableLinear], target: Target, seed: int) -> Masks:
        """Uniform scores, cut per layer."""
        masks = Masks()
        for linear in linears:
            scores = _scores(linear.shape, linear.name, seed).to(linear.weight.device)
            masks[linear.name] = keep_in_layer(scores, target, linear.name, zeros_in(linear.weight))
        return masks

    def select_units(self, units: list[Units], target: Target, seed: int) -> Masks:
        """Likewise, per block or for all of them."""
        return keep_units(units, {each.name: _of_units(each, seed) for each in units}, target, self.scope, self)


def _of_units(units: Units, seed: int) -> Tensor:
    """Those that are zero are the first to go, also queries that do not count as there are more of one key."""
    scores = _scores((units.count,), units.name, seed)
    return scores.masked_fill((units.norm(1) == 0).cpu(), -1).masked_fill(units.zero, -torch.inf)


def _scores(shape: tuple[int, ...], name: str, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode())))
