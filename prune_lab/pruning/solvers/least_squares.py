"""The values of a pruned weight that come closest to a dense one, on a given support. Tensors in, tensors out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prune_lab.errors import NotPositiveDefinite


def refit(
    weight: Tensor,
    keep: Tensor,
    hessian: Tensor,
    *,
    damping: float,
    iterations: int = 200,
    tolerance: float = 1e-5,
    start: Tensor | None = None,
) -> Tensor:
    """``argmin tr((W - V) H (W - V)^T)`` over all ``V`` that are zero outside ``keep``, each row for itself.

    Conjugate gradient on the support, preconditioned by the diagonal, from the masked weight on: all rows in matrix
    products, without a factorisation of any row's own submatrix. In exact arithmetic a row is done after as many
    iterations as it has weights left; rows that are done are left out of the products.

    Args:
        weight: ``(out, in)`` float32, the target.
        keep: ``(out, in)`` bool.
        hessian: ``(in, in)`` float32, symmetric.
        damping: added to the diagonal, as a share of its mean; dead inputs get that alone.
        iterations: at most so many.
        tolerance: a row is done when its residual has fallen to this share of that of the masked weight; float32
            resolves no less than its own precision of it, 1.2e-7.
        start: ``(out, in)`` float32, values to begin with in place of the weight's; outside ``keep`` they do not count.

    Returns:
        ``(out, in)`` float32; exactly zero outside ``keep``.

    Raises:
        NotPositiveDefinite: the damped Hessian is not.
    """
    matrix = hessian.clone()
    matrix.diagonal().add_(damping * hessian.diagonal().mean())
    solution = weight * keep
    rows = _Rows.of(weight, keep, matrix, solution)
    first = rows.product
    if start is not None:
        solution = start * keep
        rows = _Rows.of(weight, keep, matrix, solution)
        first = torch.maximum(first, rows.product)
    limit = max(tolerance, torch.finfo(hessian.dtype).eps) ** 2 * first  # a residual that is smaller is rounding alone
    working = torch.arange(len(weight), device=weight.device)
    for _ in range(iterations):
        busy = rows.product > limit[working]
        count = int(busy.count_nonzero())
        if count == 0:
            break
        if count < _FEWER * len(busy):
            solution[working] = rows.solution
            pick = busy[:, 0].nonzero()[:, 0]
            rows, working, busy = rows.only(pick), working[pick], busy[pick]
        rows.step(matrix, busy, first[working], damping)
    solution[working] = rows.solution
    return solution


_FEWER = 0.75  # products are made anew without the rows that are done where so small a share of them is left


@dataclass
class _Rows:
    """Where conjugate gradient stands in some rows of a weight: tensors ``(rows, in)``, but for ``product``."""

    mask: Tensor  # 0 and 1
    solution: Tensor
    residual: Tensor
    direction: Tensor
    scale: Tensor  # (in,): the diagonal
    product: Tensor  # (rows, 1): of the residual and the preconditioned one

    @classmethod
    def of(cls, weight: Tensor, keep: Tensor, matrix: Tensor, solution: Tensor) -> "_Rows":
        mask = keep.to(weight.dtype)
        scale = matrix.diagonal().clamp(min=torch.finfo(matrix.dtype).tiny)
        residual = (weight - solution) @ matrix * mask
        direction = residual / scale
        return cls(mask, solution.clone(), residual, direction, scale, (residual * direction).sum(1, keepdim=True))

    def only(self, rows: Tensor) -> "_Rows":
        """Some of the rows, by their indices."""
        mask, solution, residual, direction = (
            tensor[rows] for tensor in (self.mask, self.solution, self.residual, self.direction)
        )
        return _Rows(mask, solution, residual, direction, self.scale, self.product[rows])

    def step(self, matrix: Tensor, busy: Tensor, first: Tensor, damping: float) -> None:
        """Moves the busy rows, ``(rows, 1)`` bool; ``first``: the products that they began with."""
        image = self.direction @ matrix * self.mask
        curvature = (self.direction * image).sum(1, keepdim=True)
        lost = busy & ~(curvature > 0)
        busy = busy & ~lost  # of a matrix without full rank nothing but rounding may be left
        if bool((lost & ~(self.product <= torch.finfo(first.dtype).eps * first)).any()):
            raise NotPositiveDefinite(f"the Hessian is not positive definite with damping {damping:g}")
        step = torch.where(busy, self.product / curvature, 0.0)
        self.solution += step * self.direction
        self.residual -= step * image
        preconditioned = self.residual / self.scale
        renewed = (self.residual * preconditioned).sum(1, keepdim=True)
        self.direction = preconditioned + torch.where(busy, renewed / self.product, 0.0) * self.direction
        self.product = torch.where(busy, renewed, self.product)
