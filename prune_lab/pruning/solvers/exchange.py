"""Exchanges columns that went for columns that stayed, while that lowers the output error. Tensors in, tensors out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prune_lab.pruning.solvers.structured_obs import cholesky

_AT_ONCE = 10  # as in OSSCAR's commands, of neurons
_LESS = 1 - 1e-9


def exchange(weight: Tensor, hessian: Tensor, group: int, keep: Tensor, trials: int, parts: int = 1) -> Tensor:
    """Looks for a set of groups as large as the given one with a smaller error of the least-squares refit.

    For each group that went and each that stayed it is known what the error would be if the one stood in for the
    other. A trial exchanges up to ten such pairs, those that lower the error most, and is kept if all together lower
    it; if not, half as many are tried. It ends where no pair lowers the error.

    Args:
        weight: ``(out, in)``, any float type.
        hessian: ``(in, in)`` float64, positive definite; from `prune_lab.pruning.solvers.structured_obs.damped`.
        group: consecutive columns that go together.
        keep: ``(in / group,)`` bool, where to begin.
        trials: at most; each factorises the Hessian of what is kept.
        parts: of equally many groups, side by side, each of which keeps as many as it has.

    Returns:
        Bool of the shape of ``keep``, with as many groups kept.

    Raises:
        NotPositiveDefinite: the part of the Hessian that is kept is not.

    Source: OSSCAR (Meng, Ibrahim, Behdin, Hazimeh, Ponomareva and Mazumder, 2024, arXiv:2403.12983), its local search.
    Difference: it chooses those that go and those that come each by what they do alone, and so misses that one column
    can stand in for another that is like it; after an elimination one by one such exchanges hardly ever gain.
    """
    if not trials or bool(keep.all()) or not bool(keep.any()):
        return keep
    weight, number = weight.double(), _AT_ONCE
    best = _Support.of(weight, hessian, group, keep)
    pairs = best.pairs(number, parts)
    for _ in range(trials):
        if not len(pairs):
            break
        other = best.keep.clone()
        other[pairs[:, 0]], other[pairs[:, 1]] = True, False
        tried = _Support.of(weight, hessian, group, other)
        if tried.error < best.error * _LESS:
            best = tried
            pairs = best.pairs(number, parts)
        else:
            number = len(pairs) // 2
            pairs = pairs[:number]
    return best.keep


@dataclass(frozen=True)
class _Support:
    """Groups that are kept, with the weights that are best then.

    Attributes:
        keep: ``(count,)`` bool.
        error: ``tr((W - V) H (W - V)^T)``.
        best: ``(out, kept)``, the columns of V.
        inverse: ``(kept, kept)``, of their part of H.
        makes_up: ``(kept, gone)``, what those columns do for each that went.
        left: ``(gone, gone)``, what of the inputs that went nothing makes up for.
        missing: ``(out, gone)``, products of what is left with the weights that went.
        group: consecutive columns that go together.
    """

    keep: Tensor
    error: float
    best: Tensor
    inverse: Tensor
    makes_up: Tensor
    left: Tensor
    missing: Tensor
    group: int

    @classmethod
    def of(cls, weight: Tensor, hessian: Tensor, group: int, keep: Tensor) -> "_Support":
        kept, gone = (mask.repeat_interleave(group).nonzero().flatten() for mask in (keep, ~keep))
        coupling = hessian[kept[:, None], gone]
        factor = cholesky(hessian[kept[:, None], kept])
        makes_up = torch.cholesky_solve(coupling, factor)
        left = hessian[gone[:, None], gone] - coupling.T @ makes_up
        missing = weight[:, gone] @ left
        best = weight[:, kept] + weight[:, gone] @ makes_up.T
        error = float((missing * weight[:, gone]).sum())
        return cls(keep, error, best, torch.cholesky_inverse(factor), makes_up, left, missing, group)

    def pairs(self, number: int, parts: int) -> Tensor:
        """Pairs of groups, one to come back and one to go for it: ``(pairs, 2)`` int64, those that gain most first.

        No group is in two of them; at most ``number``, all of which lower the error if exchanged alone.
        """
        kept, gone = (mask.nonzero().flatten() for mask in (self.keep, ~self.keep))
        of_part = torch.arange(len(self.keep), device=kept.device) * parts // len(self.keep)
        elsewhere = of_part[kept][:, None] != of_part[gone]
        changes, to_go = self.changes().masked_fill_(elsewhere, torch.inf).min(0)
        found: dict[int, int] = {}
        for index in changes.argsort(stable=True).tolist():
            if len(found) == number or float(changes[index]) >= -(1 - _LESS) * self.error:
                break
            found.setdefault(int(kept[to_go[index]]), int(gone[index]))
        return torch.tensor([(back, go) for go, back in found.items()], dtype=torch.int64, device=self.keep.device)

    def changes(self) -> Tensor:
        """How the error changes if a group that went comes back, and one that stayed goes: ``(kept, gone)`` groups.

        With R back the inverse of what is kept has ``C_SS + Z [L_RR]^-1 Z^T`` for S, where Z are the rows S and columns
        R of ``makes_up`` and L is ``left``, and the weights ``V_S - M_R [L_RR]^-1 Z^T``, where M is ``missing``.
        """
        of_kept, of_gone = (self._diagonal(matrix) for matrix in (self.inverse, self.left))
        squares, missed = (self._diagonal(each.T @ each) for each in (self.best, self.missing))
        stands_in, mixed = (self._blocks(each) for each in (self.makes_up, self.best.T @ self.missing))
        gains = _solved(of_gone, missed).diagonal(dim1=-2, dim2=-1).sum(-1)  # (gone,)
        shares = _solved(of_gone, stands_in.mT).mT  # Z [L_RR]^-1, (kept, gone, group, group)
        inverses = of_kept[:, None] + shares @ stands_in.mT
        crossed = mixed @ shares.mT
        products = squares[:, None] - crossed - crossed.mT + shares @ missed @ shares.mT
        losses = _solved(inverses, products).diagonal(dim1=-2, dim2=-1).sum(-1)  # (kept, gone)
        return losses - gains

    def _blocks(self, matrix: Tensor) -> Tensor:
        rows, columns = (size // self.group for size in matrix.shape)
        return matrix.reshape(rows, self.group, columns, self.group).transpose(1, 2)

    def _diagonal(self, matrix: Tensor) -> Tensor:
        return self._blocks(matrix).diagonal(dim1=0, dim2=1).movedim(-1, 0)


def _solved(blocks: Tensor, right: Tensor) -> Tensor:
    """``blocks^-1 right`` of square blocks; of single numbers without a factorisation of each."""
    return right / blocks if blocks.shape[-1] == 1 else torch.linalg.solve(blocks, right)
