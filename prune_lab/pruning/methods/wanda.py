"""Wanda: drops the weights whose input-scaled magnitude is least in their row."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.calibration.statistics import InputNorm
from prune_lab.pruning.masks import count_dropped, zeros_in
from prune_lab.pruning.methods.layerwise import LayerwiseMethod
from prune_lab.pruning.methods.selection import keep_in_rows
from prune_lab.pruning.target import Target

_SCORES_AT_ONCE = 1 << 18  # without a budget rows are independent, and scores of a few at a time stay in the cache


@dataclass
class Wanda(LayerwiseMethod):
    """Scores each weight ``|W_ij| * ||x_j||`` and drops ``floor(s * in)`` of every row; the kept weights do not change.

    Source: Sun et al., 2023, arXiv:2306.11695, equation 1. As in the authors' code, all weights of a block are scored
    on one pass through the block while it is dense, and blocks are pruned in order.
    """

    for_encoders: ClassVar[bool] = True

    statistic: ClassVar = InputNorm

    def solves_rows(self, linear: PrunableLinear, target: Target) -> bool:
        """Returns whether every row loses its own share.

        With a budget the remainder goes from some of them, and rows with more zeros than that share leave less to the
        others.
        """
        if target.n_of_m is not None or linear.name in target.budget:
            return target.n_of_m is not None
        return int((linear.weight == 0).sum(1).max()) <= count_dropped(target.of(linear.name), linear.shape[1])

    def solve(self, linear: PrunableLinear, prepared: InputNorm, target: Target) -> Tensor:
        """Cuts the scores within rows."""
        pruned = torch.empty(linear.shape, dtype=linear.weight.dtype, device=linear.weight.device)
        zero = zeros_in(linear.weight)
        if zero is not None:
            return linear.weight * keep_in_rows(linear.weight.abs() * prepared.value, target, linear.name, zero)
        rows = len(pruned) if linear.name in target.budget else max(1, _SCORES_AT_ONCE // linear.shape[1])
        for part, result in zip(linear.weight.split(rows), pruned.split(rows), strict=True):
            torch.mul(part, keep_in_rows(part.abs() * prepared.value, target, linear.name), out=result)
        return pruned
