"""Optimal-brain-surgeon updates of one weight matrix. Tensors in, tensors out; nothing here knows about models."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prune_lab.errors import NotPositiveDefinite
from prune_lab.pruning.masks import count_dropped, keep_all_but, keep_n_of_m
from prune_lab.pruning.solvers import sweep_kernel

_SUB_BLOCK = 16  # columns whose mutual updates are done one by one; wider ones become matrix products


@dataclass(frozen=True)
class Factor:
    """The upper factor ``R`` of a damped Hessian, ``R R^T = H + damping * mean(diag H) I``.

    Its inverse is the upper Cholesky factor of the inverse Hessian, the one in SparseGPT's formulas; `sparsegpt` works
    from ``R`` itself, which takes one factorisation and no inverse.
    """

    upper: Tensor  # (in, in) float32
    dead: Tensor  # (in,) bool: inputs that were never active

    def block(self, start: int, stop: int) -> "Factor":
        """The part that belongs to a range of columns; a view."""
        return Factor(self.upper[start:stop, start:stop], self.dead[start:stop])


def factorize(hessian: Tensor, damping: float, *, in_place: bool = False) -> Factor:
    """Factorises a Hessian.

    Args:
        hessian: ``(in, in)`` float32, of any scale; only the upper triangle is read. Inputs that were never active (a
            zero on the diagonal) get a one there.
        damping: added to the diagonal, as a share of its mean.
        in_place: use up the memory of ``hessian``, which is contiguous then: at 28,672 inputs a copy takes 3.3 GB.

    Raises:
        NotPositiveDefinite: there is no such factor.
    """
    if not in_place:
        hessian = hessian.clone(memory_format=torch.contiguous_format)
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1
    diagonal += damping * diagonal.mean()
    _reverse(hessian)  # R in reversed order is the lower factor of this; read by columns, as LAPACK does, the upper
    info = torch.empty((), dtype=torch.int32, device=hessian.device)
    torch.linalg.cholesky_ex(hessian.T, upper=True, out=(hessian.T, info))
    if int(info) or not bool(torch.isfinite(diagonal).all()):
        raise NotPositiveDefinite(f"the Hessian is not positive definite with damping {damping:g}")
    _reverse(hessian)
    return Factor(hessian, dead)


def _reverse(matrix: Tensor, chunk: int = 1 << 20) -> None:
    """Reverses rows and columns of a contiguous matrix in place: that is, all its entries."""
    entries = matrix.view(-1)
    for start in range(0, len(entries) // 2, chunk):
        stop = min(start + chunk, len(entries) // 2)
        front, back = entries[start:stop], entries[len(entries) - stop : len(entries) - start]
        kept = front.flip(0)
        front.copy_(back.flip(0))
        back.copy_(kept)


def sparsegpt(
    weight: Tensor,
    factor: Factor,
    sparsity: float,
    n_of_m: tuple[int, int] | None = None,
    *,
    block_size: int = 128,
    zero: Tensor | None = None,
) -> Tensor:
    """Prunes a layer by SparseGPT: columns left to right, each error spread over the columns not yet reached.

    With ``U = R^-1`` the paper subtracts ``E_j U_j`` from the later columns as it goes, ``E_j`` being the pruned value
    of column j over ``U_jj``. In total ``W0 - W = E U``, so ``E = (W0 - W) R``: the value that column j has when it is
    reached follows from the changes of the columns before it, ``w_j = W0_j + sum_{k<j} (W0 - W)_k R_kj / R_jj``. This
    gives the same weights without an inverse. Where a mask is chosen for columns B at once, before the sweep, their
    values are ``W0_B + (sum_{k<B} (W0 - W)_k R_kB) R_BB^-1``.

    Args:
        weight: ``(out, in)``, any float type; not changed.
        factor: from `factorize`. Weights of dead inputs are dropped first; those that stay are left as they are.
        sparsity: fraction removed; over all columns exactly ``floor(sparsity * out * in)`` weights, spread evenly over
            the blocks of columns. Ignored with ``n_of_m``.
        n_of_m: ``(N, M)``: keep N of every M consecutive inputs.
        block_size: columns whose mask is chosen at once.
        zero: ``(out, in)`` bool, weights that are zero and stay so: part of what is removed, and where there are more
            of them than that, all of it. What errors would make of them is an error of its own, which later columns
            make up for. ``None``: there are none.

    Returns:
        ``(out, in)`` float32, removed weights exactly zero.

    Source: SparseGPT (Frantar and Alistarh, 2023, arXiv:2301.00774), algorithm 1. The authors' code drops
    ``int(sparsity * n) + 1`` weights of every block of columns, and all weights of dead inputs besides; here the total
    is exact.
    """
    out_features, in_features = weight.shape
    if n_of_m:
        block_size = max(1, block_size // n_of_m[1]) * n_of_m[1]
    current = torch.empty(in_features, out_features, device=weight.device).copy_(weight.T)  # columns are rows here
    change = torch.empty_like(current)  # W0 - W, for the columns that are done
    goals = _Goals(sparsity, weight.shape, zero)
    dropped = 0
    for start in range(0, in_features, block_size):
        stop = min(start + block_size, in_features)
        block = slice(start, stop)
        part = factor.block(start, stop)
        pending = factor.upper[:start, block].T @ change[:start]  # (columns, out), zero for the first block
        fixed = None if zero is None else zero[:, block].T  # (columns, out)
        keep = None
        if n_of_m is None:
            goal = goals.up_to(stop)
            saliency = _zeros_lowest(_saliency(current[block], pending, part), fixed)
            keep = keep_all_but(saliency.flatten(), goal - dropped).view_as(saliency)
            dropped = goal
        _sweep(current[block], pending, part, keep, n_of_m, change[block], fixed)
    return current.T


class _Goals:
    """How many weights go of the first columns, for an exact total: spread evenly over those that are not zero yet."""

    def __init__(self, sparsity: float, shape: torch.Size, zero: Tensor | None):
        self._sparsity, (self._rows, columns) = sparsity, shape
        self._zeros = None if zero is None else zero.sum(0).cumsum(0).tolist()  # of the columns up to each
        if self._zeros is not None:
            self._alive = self._rows * columns - self._zeros[-1]
            self._more = max(0, count_dropped(sparsity, self._rows * columns) - self._zeros[-1])

    def up_to(self, stop: int) -> int:
        if self._zeros is None:
            return count_dropped(self._sparsity, self._rows * stop)
        zeros: int = self._zeros[stop - 1]
        alive = self._rows * stop - zeros
        return zeros + int(self._more * alive // max(1, self._alive))


def _zeros_lowest(saliency: Tensor, zero: Tensor | None) -> Tensor:
    """The saliency, in place, with a value below all others where weights are zero already."""
    return saliency if zero is None else saliency.masked_fill_(zero, -1)


def _saliency(original: Tensor, pending: Tensor, factor: Factor) -> Tensor:
    """``(w_j / U_jj)^2`` of columns as they are before the first is pruned, 0 for dead ones: ``(columns, out)``."""
    current: Tensor = original + torch.linalg.solve_triangular(factor.upper.T, pending, upper=False)
    return current.mul_(factor.upper.diagonal().masked_fill(factor.dead, 0)[:, None]).square_()


def _sweep(
    current: Tensor,
    pending: Tensor,
    factor: Factor,
    keep: Tensor | None,
    n_of_m: tuple[int, int] | None,
    change: Tensor,
    zero: Tensor | None,
) -> None:
    """Prunes a block of columns: ``current`` goes from W0 to W, ``change`` becomes their difference.

    All are ``(columns, out)``; ``pending``, the sum over the columns before the block, is used up.
    """
    columns, upper = current.shape[0], factor.upper
    if sweep_kernel.can_run_on(current.device) and (n_of_m is None or n_of_m[1] <= sweep_kernel.LARGEST_GROUP):
        group = n_of_m[1] if n_of_m else 1
        for start in range(0, columns, width := sweep_kernel.COLUMNS // group * group):
            part = slice(start, min(start + width, columns))
            if start:
                pending[part].addmm_(upper[:start, part].T, change[:start])
            kept, fixed = (None if mask is None else mask[part] for mask in (keep, zero))
            own = factor.block(part.start, part.stop)
            sweep_kernel.sweep(current[part], pending[part], own.upper, own.dead, kept, n_of_m, change[part], fixed)
        return
    width = n_of_m[1] if n_of_m else _SUB_BLOCK
    inverse_scale = upper.diagonal().reciprocal().tolist()
    pendings, currents, changes = pending.unbind(), current.unbind(), change.unbind()  # the columns, to save indexing
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        if start:
            pending[start:stop].addmm_(upper[:start, start:stop].T, change[:start])
        if n_of_m:
            saliency = _saliency(current[start:stop], pending[start:stop], factor.block(start, stop))
            fixed = None if zero is None else zero[start:stop]
            kept = keep_n_of_m(_zeros_lowest(saliency, fixed).T, *n_of_m).T
            if fixed is not None:
                kept = kept & ~fixed
        else:
            assert keep is not None
            kept = keep[start:stop]
        factors = kept.to(current.dtype)  # as numbers: a product of two types takes several times as long
        for j, factor_of_column in enumerate(factors.unbind(), start):
            column = pendings[j]
            if j > start:
                column.addmv_(change[start:j].T, upper[start:j, j])
            column.mul_(inverse_scale[j]).add_(currents[j]).mul_(factor_of_column)
            torch.sub(currents[j], column, out=changes[j])
        current[start:stop] = pending[start:stop]
