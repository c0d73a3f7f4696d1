"""DSnoT: swaps weights in another method's masks until the mean output of every row is what it was."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.models.view import Block, PrunableLinear
from prune_lab.pruning.methods.blockwise import BlockMethod
from prune_lab.pruning.methods.refining import RefiningMethod
from prune_lab.pruning.target import Target
from prune_lab.utils.checks import check_flag, check_number, check_whole


class InputMoments:
    """Mean, variance and norm of each input over the tokens seen, ``(in,)`` float32 each."""

    def __init__(self) -> None:
        self.tokens = 0
        self.mean = self._squares = torch.zeros(())  # the squares are of deviations from the mean

    def update(self, inputs: Tensor) -> None:
        """Adds a batch ``(tokens, in)``; means are merged, as sums of squares would cancel."""
        x = inputs.float()
        mean, tokens = x.mean(0), self.tokens + len(x)
        shift = mean - self.mean.to(x.device)
        between = shift.square() * (self.tokens * len(x) / tokens)
        self._squares = self._squares.to(x.device) + (x - mean).square().sum(0) + between
        self.mean = self.mean.to(x.device) + shift * (len(x) / tokens)
        self.tokens = tokens

    @property
    def variance(self) -> Tensor:
        """Of the tokens seen, not an estimate for others."""
        return self._squares / self.tokens

    @property
    def norm(self) -> Tensor:
        """As Wanda has it: the root of the sum of squares."""
        return (self._squares + self.tokens * self.mean.square()).sqrt()


@dataclass
class DSnoT(RefiningMethod):
    """Regrows a pruned weight and prunes a kept one, row by row, while that brings the mean output nearer.

    The mean output of row r is off the dense one by ``eps_r = sum_j (dense_rj - pruned_rj) mean_j``. In each cycle the
    pruned weight with the largest ``dense_rj mean_j / var_j^power`` of the sign of ``eps_r`` returns with its dense
    value, and of the kept weights whose removal moves ``eps_r`` to zero the one of least ``|W_rj| * ||x_j||`` goes.
    With N:M both are of one group. A row is done when ``|eps_r| <= tolerance``, or when a swap would not make
    ``|eps_r|`` less.

    Args:
        inner: chooses the first mask; kept weights keep its values.
        max_cycles: swaps per row, at most.
        tolerance: of ``|eps_r|``.
        power: of the variance; 0 ignores it.
        skip_mlp: leaves feed-forward layers to the inner method, the default of the authors' code.

    Source: Zhang et al., 2023, arXiv:2310.08915. The authors' code also makes swaps that overshoot, and sums
    ``eps_r`` over pruned weights only, which is the same unless the inner method updates those it keeps.
    """

    inner: BlockMethod
    max_cycles: int = 50
    tolerance: float = 0.1
    power: float = 1.0
    skip_mlp: bool = False
    statistic: ClassVar = InputMoments

    def __post_init__(self) -> None:
        check_whole(self, "max_cycles", least=0)
        check_number(self, "tolerance", "power", least=0)
        check_flag(self, "skip_mlp")

    def refines(self, block: Block, linear: PrunableLinear) -> bool:
        """Returns whether the layer is of the attention, or of a feed-forward network that is not skipped."""
        return not (self.skip_mlp and linear in block.mlp.linears)

    def refine(self, dense: Tensor, pruned: Tensor, prepared: InputMoments, target: Target) -> Tensor:
        """Swaps in all rows at once, one swap per row and cycle."""
        dense, weight = dense.float(), pruned.float().clone()
        group = target.n_of_m[1] if target.n_of_m else weight.shape[1]
        off = (dense - weight) @ prepared.mean  # (out, in) @ (in,)
        rows = torch.arange(len(weight), device=weight.device)
        for _ in range(self.max_cycles):
            rows = rows[off[rows].abs() > self.tolerance]
            if not len(rows):
                break
            grow, drop, found = choose_swap(dense[rows], weight[rows], off[rows], prepared, group, self.power)
            after = off[rows] - dense[rows, grow] * prepared.mean[grow] + weight[rows, drop] * prepared.mean[drop]
            better = found & (after.abs() < off[rows].abs())
            rows, grow, drop = rows[better], grow[better], drop[better]
            weight[rows, grow] = dense[rows, grow]
            weight[rows, drop] = 0
            off[rows] = after[better]
        return weight


def choose_swap(
    dense: Tensor, weight: Tensor, off: Tensor, moments: InputMoments, group: int, power: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The swap of each row.

    Args:
        dense: ``(rows, in)``.
        weight: as it now is, zero where pruned, ``(rows, in)``.
        off: what the mean output lacks, ``(rows,)``.
        moments: of the inputs.
        group: both weights lie in one group of so many inputs.
        power: of the variance.

    Returns:
        The column to regrow, the one to prune, and whether there are such, ``(rows,)`` each.
    """
    toward = off.sign()[:, None] * moments.mean
    discount = moments.variance.pow(power).clamp_min(torch.finfo(torch.float32).tiny)
    gain = torch.where(weight == 0, dense * toward / discount, 0)
    cost = torch.where(weight * toward < 0, weight.abs() * moments.norm, torch.inf)
    possible = cost.unflatten(1, (-1, group)).isfinite().any(2).repeat_interleave(group, 1)
    best = gain.masked_fill(~possible, 0).max(1)
    place = torch.arange(weight.shape[1], device=weight.device) // group
    cheapest = cost.masked_fill(place != (best.indices // group)[:, None], torch.inf).min(1)
    return best.indices, cheapest.indices, (best.values > 0) & cheapest.values.isfinite()
