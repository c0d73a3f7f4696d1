"""SparseSwaps: makes the best exchange of a kept and a pruned weight in every row, until none helps."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.statistics import Hessian
from prune_lab.pruning.methods.blockwise import BlockMethod
from prune_lab.pruning.methods.refining import RefiningMethod
from prune_lab.pruning.target import Target
from prune_lab.utils.checks import check_whole

_LEAST_GAIN = 1e-6  # of a row's first error: less is rounding


@dataclass
class SparseSwaps(RefiningMethod):
    """Exchanges a kept and a pruned weight of a row where that lowers the row's output error most, again and again.

    With the residual ``r`` (the dense weights that are pruned) and ``g = H r``, dropping j and regrowing k changes the
    error ``r^T H r`` by exactly ``w_j^2 H_jj + 2 w_j g_j + w_k^2 H_kk - 2 w_k g_k - 2 w_j w_k H_jk``. Rows are
    independent. With N:M both weights are of one group. Kept weights have their dense values, whatever the inner
    method made of them: after one that updates weights the error may rise.

    Args:
        inner: chooses the first mask.
        max_swaps: per row, at most.

    Source: SparseSwaps, 2025, arXiv:2512.10922; written from the description, not from the authors' code.
    """

    inner: BlockMethod
    max_swaps: int = 50
    statistic: ClassVar = Hessian

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "max_swaps", least=0)

    def prepare(self, statistic: Hessian, calibration: Calibration) -> Tensor:
        """Returns the Hessian, ``(in, in)``."""
        return statistic.value

    def refine(self, dense: Tensor, pruned: Tensor, prepared: Tensor, target: Target) -> Tensor:
        """Swaps in a few rows at a time."""
        keep = pruned != 0  # (out, in)
        group = target.n_of_m[1] if target.n_of_m else None
        rows = _rows_at_once(keep, group)
        for weight, part in zip(dense.split(rows), keep.split(rows), strict=True):
            swap(weight.float(), part, prepared, self.max_swaps, group)
        return dense * keep


def swap(weight: Tensor, keep: Tensor, hessian: Tensor, max_swaps: int, group: int | None = None) -> None:
    """Swaps in all rows of ``keep``, in place.

    Args:
        weight: dense, ``(rows, in)`` float32.
        keep: ``(rows, in)``.
        hessian: ``(in, in)``.
        max_swaps: per row.
        group: both weights lie in one group of so many inputs; ``None`` for anywhere in the row.
    """
    residual = weight * ~keep
    pull = residual @ hessian
    least = _LEAST_GAIN * (residual * pull).sum(1)
    rows = (keep.any(1) & ~keep.all(1)).nonzero()[:, 0]  # the others have nothing to exchange
    for _ in range(max_swaps if len(rows) else 0):
        w, kept = weight[rows], keep[rows]
        alone = w.square() * hessian.diagonal() + 2 * w * torch.where(kept, pull[rows], -pull[rows])
        alone.masked_fill_(~kept & (w == 0), torch.inf)  # would cost a weight and give none
        change, one, other = (
            _best_in_row(w, kept, alone, hessian) if group is None else _best_in_group(w, kept, alone, hessian, group)
        )
        better = change < -least[rows]
        rows, one, other = rows[better], one[better], other[better]
        if not len(rows):
            break
        for column in (one, other):
            sign = torch.where(keep[rows, column], 1.0, -1.0)  # what is dropped joins the residual
            pull[rows] += (sign * weight[rows, column])[:, None] * hessian[column]
            keep[rows, column] = ~keep[rows, column]


def _best_in_row(w: Tensor, kept: Tensor, alone: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best exchange of each row: the change of its error, and the two columns, ``(rows,)`` each.

    ``alone`` is what flipping each weight by itself would change, ``(rows, in)``. The rarer of kept and pruned weights
    are gathered: ``rows * min(kept, pruned) * in`` numbers are held.
    """
    few = _rarer(kept)
    columns = few.byte().topk(int(few.sum(1).max())).indices  # (rows, few)
    own = torch.where(few.gather(1, columns), alone.gather(1, columns), torch.inf)
    changes = hessian[columns].mul_(-2 * w.gather(1, columns)[:, :, None]).mul_(w[:, None, :])
    changes += alone.masked_fill(few, torch.inf)[:, None, :]
    best = changes.min(2)
    first = (best.values + own).min(1)
    at = first.indices[:, None]
    return first.values, columns.gather(1, at)[:, 0], best.indices.gather(1, at)[:, 0]


def _best_in_group(
    w: Tensor, kept: Tensor, alone: Tensor, hessian: Tensor, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_best_in_row`, with both weights of one group of ``group`` inputs."""
    members = torch.arange(w.shape[1], device=w.device).view(-1, group)
    blocks = hessian[members[:, :, None], members[:, None, :]]  # (groups, group, group)
    w, kept, alone = (each.unflatten(1, (-1, group)) for each in (w, kept, alone))
    drop, grow = alone.masked_fill(~kept, torch.inf), alone.masked_fill(kept, torch.inf)
    changes = drop[..., :, None] + grow[..., None, :] - 2 * w[..., :, None] * w[..., None, :] * blocks
    best = changes.flatten(1).min(1)
    where, pair = best.indices // group**2, best.indices % group**2
    return best.values, where * group + pair // group, where * group + pair % group


def _rarer(keep: Tensor) -> Tensor:
    """The kept or the pruned weights: of which no row has many, ``(rows, in)``."""
    most = int(keep.sum(1).max())
    return keep if most <= int((~keep).sum(1).max()) else ~keep


def _rows_at_once(keep: Tensor, group: int | None) -> int:
    """As many rows as a swap may look at together: a few MiB on a processor, 256 MiB on an accelerator."""
    each = keep.shape[1] * (group or max(1, int(_rarer(keep).sum(1).max())))
    return max(1, (1 << (19 if keep.device.type == "cpu" else 26)) // each)
