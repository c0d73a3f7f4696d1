"""Random pruning: the floor that every other method has to beat."""

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from prune_lab.models.units import Units
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.masks import Masks, count_dropped, keep_all_but, zeros_in
from prune_lab.pruning.methods.data_free import DataFreeMethod
from prune_lab.pruning.methods.selection import keep_in_layer
from prune_lab.pruning.target import Target


@dataclass
class Random(DataFreeMethod):
    """Drops a random choice of each layer's weights, neurons or heads, exactly ``floor(s * n)``.

    The choice depends on the run's ``seed`` and the name of the layer only, so it is the same whatever else is pruned.
    """

    def select_mask(self, linears: list[PrunableLinear], target: Target, seed: int) -> Masks:
        """Uniform scores, cut per layer."""
        masks = Masks()
        for linear in linears:
            scores = _scores(linear.shape, linear.name, seed)
            masks[linear.name] = keep_in_layer(scores, target, linear.name, zeros_in(linear.weight))
        return masks

    def select_units(self, units: list[Units], target: Target, seed: int) -> Masks:
        """Likewise, per block."""
        masks = Masks()
        for each in units:
            dropped = count_dropped(target.sparsity, each.count)
            scores = _scores((each.count,), each.name, seed).masked_fill(each.zero, -torch.inf)
            masks[each.name] = keep_all_but(scores, dropped)
        return masks


def _scores(shape: tuple[int, ...], name: str, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode())))
