"""Wanda's variant: every row loses the same share of its score, and so as many weights as it can spare."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.calibration.statistics import InputNorm
from prune_lab.pruning.masks import zeros_in
from prune_lab.pruning.methods.layerwise import LayerwiseMethod
from prune_lab.pruning.methods.selection import keep_in_groups, keep_of_layer
from prune_lab.pruning.target import Target


@dataclass
class WandaVariant(LayerwiseMethod):
    """Scores as Wanda does, and drops from each row its lowest scores as long as they sum to at most ``alpha`` of it.

    ``alpha`` is the same for all rows of a layer, and such that ``floor(s * out * in)`` weights of it go; rows lose
    different numbers. The highest score of a row, unless it is 0, goes only when no row has two left. An N:M target is
    met as by Wanda.

    Source: Sun et al., 2023, arXiv:2306.11695, ``--use_variant`` of the authors' code. That bisects ``alpha`` in
    [0, 0.8] until the sparsity is within 0.001, so it falls short where more than 0.8 is needed. Here no number is
    searched: a weight goes once ``alpha`` reaches the share of its row that it completes, so the lowest of these
    shares, compared over the layer, are the exact solution, without a bound and to the weight.
    """

    statistic: ClassVar = InputNorm

    def solve(self, linear: PrunableLinear, prepared: InputNorm, target: Target) -> Tensor:
        """Cuts the cumulative shares within the layer."""
        scores = linear.weight.abs() * prepared.value  # (out, in) * (in,)
        zero = zeros_in(linear.weight)
        if target.n_of_m:
            return linear.weight * keep_in_groups(scores, *target.n_of_m, zero)
        shares = cumulative_shares(scores)
        return linear.weight * keep_of_layer(shares, target.dropped(linear.name, shares.numel()), zero)


def cumulative_shares(scores: Tensor) -> Tensor:
    """Returns the share of its row's sum that each score completes in ascending order; 0 in rows of zeros.

    In float64, in which even the smallest score of a long row still counts: 8 bytes a weight, three times over.

    Args:
        scores: ``(out, in)``, any float type, not negative.

    Returns:
        ``(out, in)`` float64.
    """
    ascending, order = scores.double().sort(dim=1, stable=True)
    sums = ascending.cumsum_(1)
    shares = sums / sums[:, -1:].clamp_min(torch.finfo(sums.dtype).tiny)
    return torch.empty_like(shares).scatter_(1, order, shares)
