"""DSnoT: swaps weights in another method's masks to bring the mean output of every row to what it was."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.models.block import Block
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.methods.blockwise import BlockMethod
from prune_lab.pruning.methods.refining import RefiningMethod
from prune_lab.pruning.target import Target
from prune_lab.utils.checks import check_choice, check_flag, check_number, check_whole

RULES = ("nearer", "paper")
TOLERANCE_OVER = ("token", "sequence")


class InputMoments:
    """Mean, variance and norm of each input over the tokens seen, ``(in,)`` float32 each."""

    sums: ClassVar = ("moments",)

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
    def moments(self) -> Tensor | None:
        """Number of tokens, sum and sum of squares, ``(3, in)`` float64, which does not cancel: sums over samples.

        ``None`` before any token: a process may have samples that are held out alone.
        """
        if not self.tokens:
            return None
        mean = self.mean.double()
        total = self.tokens * mean
        return torch.stack([torch.full_like(mean, self.tokens), total, self._squares.double() + total * mean])

    @moments.setter
    def moments(self, sums: Tensor) -> None:
        tokens, total, squares = sums
        mean = total / tokens.clamp_min(1)
        self.tokens, self.mean = int(tokens.max()), mean.float()
        self._squares = (squares - total * mean).clamp_min(0).float()

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
    """Regrows a pruned weight and prunes a kept one, row by row, until the mean output is near the dense one.

    The mean output of row r is off the dense one by ``eps_r = sum_j (dense_rj - pruned_rj) mean_j``. In each cycle the
    pruned weight with the largest ``dense_rj mean_j / var_j^power`` of the sign of ``eps_r`` returns
    with its dense value, and a kept one goes: of those whose removal moves ``eps_r`` to zero, the one of least
    ``|W_rj| * ||x_j||``. With N:M both are of one group. A row is done when ``|eps_r| <= tolerance``, when nothing is
    left to swap, or after ``max_cycles``.

    Args:
        inner: chooses the first mask; kept weights keep its values.
        max_cycles: swaps per row, at most.
        tolerance: of ``|eps_r|``.
        tolerance_over: ``token``: as it is; ``sequence``: of ``eps_r`` summed over a calibration sequence, as in the
            authors' code.
        power: of the variance; 0 ignores it.
        skip_mlp: leaves feed-forward layers to the inner method, the default of the authors' code.
        rule: ``nearer``: a row is done when a swap would not lessen ``|eps_r|``. ``paper``, as in the authors' code:
            swaps may overshoot, and a weight is swapped once at most; with N:M the least of the group goes, whatever
            its sign, and a row is done before ``eps_r`` would change its sign.

    Source: Zhang et al., 2023, arXiv:2310.08915. The authors' code is ``rule=paper``, ``tolerance_over=sequence`` and
    ``skip_mlp=true``, but for two things: there ``var_j`` is the mean variance within sequences, here that over all
    tokens; and kept weights have their dense values whatever the inner method made of them, here they keep the inner
    method's, and ``eps_r`` counts that. It is not the default, as its swaps only end at ``max_cycles``: few for rows of
    4,096 weights, and as many as are kept at 70 % in rows of 160 (docs/methods/post_training.md).
    """

    inner: BlockMethod
    max_cycles: int = 50
    tolerance: float = 0.1
    tolerance_over: str = "token"
    power: float = 1.0
    skip_mlp: bool = False
    rule: str = "nearer"
    statistic: ClassVar = InputMoments

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "max_cycles", least=0)
        check_number(self, "tolerance", "power", least=0)
        check_flag(self, "skip_mlp")
        check_choice(self, "rule", RULES)
        check_choice(self, "tolerance_over", TOLERANCE_OVER)

    def refines(self, block: Block, linear: PrunableLinear) -> bool:
        """Returns whether the layer is of the attention, or of a feed-forward network that is not skipped."""
        return not (self.skip_mlp and linear in block.feed_forward.linears)

    def prepare(self, statistic: InputMoments, calibration: Calibration) -> tuple[InputMoments, float]:
        """Returns the moments, and the tolerance for a token."""
        seqlen = calibration.tokens.shape[1]
        return statistic, self.tolerance / (seqlen if self.tolerance_over == "sequence" else 1)

    def refine(self, dense: Tensor, pruned: Tensor, prepared: tuple[InputMoments, float], target: Target) -> Tensor:
        """Swaps in all rows at once, one swap per row and cycle."""
        moments, tolerance = prepared
        dense, weight = dense.float(), pruned.float().clone()
        group = target.n_of_m[1] if target.n_of_m else weight.shape[1]
        off = (dense - weight) @ moments.mean  # (out, in) @ (in,)
        first, free = off.clone(), torch.ones_like(weight, dtype=torch.bool)
        rows = torch.arange(len(weight), device=weight.device)
        for _ in range(self.max_cycles):
            rows = rows[off[rows].abs() > tolerance]
            if not len(rows):
                break
            grow, drop, found = choose_swap(
                dense[rows], weight[rows], free[rows], off[rows], moments, group, self.power, self._any_sign(target)
            )
            after = off[rows] - dense[rows, grow] * moments.mean[grow] + weight[rows, drop] * moments.mean[drop]
            made = found & self._allows(off[rows], after, first[rows], target)
            rows, grow, drop = rows[made], grow[made], drop[made]
            weight[rows, grow] = dense[rows, grow]
            weight[rows, drop] = 0
            off[rows] = after[made]
            if self.rule == "paper":
                free[rows, grow] = free[rows, drop] = False
        return weight

    def _any_sign(self, target: Target) -> bool:
        """Whether also a weight whose removal moves the output further away may go."""
        return self.rule == "paper" and target.n_of_m is not None

    def _allows(self, before: Tensor, after: Tensor, first: Tensor, target: Target) -> Tensor:
        """Whether swaps are made that bring the rows' outputs from ``before`` to ``after``, ``(rows,)`` each."""
        if self.rule == "nearer":
            return after.abs() < before.abs()
        if target.n_of_m:
            return after.sign() == first.sign()
        return torch.ones_like(after, dtype=torch.bool)


def choose_swap(
    dense: Tensor,
    weight: Tensor,
    free: Tensor,
    off: Tensor,
    moments: InputMoments,
    group: int,
    power: float,
    any_sign: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The swap of each row.

    Args:
        dense: ``(rows, in)``.
        weight: as it now is, zero where pruned, ``(rows, in)``.
        free: which weights may be swapped, ``(rows, in)``.
        off: what the mean output lacks, ``(rows,)``.
        moments: of the inputs.
        group: both weights lie in one group of so many inputs.
        power: of the variance.
        any_sign: whether the pruned one may be one whose removal moves the output further away.

    Returns:
        The column to regrow, the one to prune, and whether there are such, ``(rows,)`` each.
    """
    toward = off.sign()[:, None] * moments.mean
    discount = moments.variance.pow(power).clamp_min(torch.finfo(torch.float32).tiny)
    gain = torch.where((weight == 0) & free, dense * toward / discount, 0)
    helps = weight != 0 if any_sign else weight * toward < 0
    cost = torch.where(helps & free, weight.abs() * moments.norm, torch.inf)
    possible = cost.unflatten(1, (-1, group)).isfinite().any(2).repeat_interleave(group, 1)
    best = gain.masked_fill(~possible, 0).max(1)
    place = torch.arange(weight.shape[1], device=weight.device) // group
    cheapest = cost.masked_fill(place != (best.indices // group)[:, None], torch.inf).min(1)
    return best.indices, cheapest.indices, (best.values > 0) & cheapest.values.isfinite()
