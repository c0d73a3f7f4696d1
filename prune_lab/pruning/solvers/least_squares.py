"""The values of a pruned weight that come closest to a dense one, on a given support. Tensors in, tensors out."""

import torch
from torch import Tensor

from prune_lab.errors import NotPositiveDefinite


def refit(
    weight: Tensor, keep: Tensor, hessian: Tensor, *, damping: float, iterations: int = 200, tolerance: float = 1e-5
) -> Tensor:
    """``argmin tr((W - V) H (W - V)^T)`` over all ``V`` that are zero outside ``keep``, each row for itself.

    Conjugate gradient on the support, preconditioned by the diagonal, from the masked weight on: all rows in matrix
    products, without a factorisation of any row's own submatrix. In exact arithmetic a row is done after as many
    iterations as it has weights left.

    Args:
        weight: ``(out, in)`` float32, the target.
        keep: ``(out, in)`` bool.
        hessian: ``(in, in)`` float32, symmetric.
        damping: added to the diagonal, as a share of its mean; dead inputs get that alone.
        iterations: at most so many.
        tolerance: stop when every row's residual has fallen to this share of its first; float32 resolves no less than
            its own precision of it, 1.2e-7.

    Returns:
        ``(out, in)`` float32; exactly zero outside ``keep``.

    Raises:
        NotPositiveDefinite: the damped Hessian is not.
    """
    matrix, precision = hessian.clone(), torch.finfo(hessian.dtype).eps
    matrix.diagonal().add_(damping * hessian.diagonal().mean())
    scale = matrix.diagonal().clamp(min=torch.finfo(matrix.dtype).tiny)
    mask = keep.to(weight.dtype)
    solution = weight * mask
    residual = (weight - solution) @ matrix * mask
    direction = residual / scale
    product = (residual * direction).sum(1, keepdim=True)  # (out, 1), as all below
    first = product.clone()
    for _ in range(iterations):
        busy = product > max(tolerance, precision) ** 2 * first  # a residual that is smaller is rounding alone
        if not bool(busy.any()):
            break
        image = direction @ matrix * mask
        curvature = (direction * image).sum(1, keepdim=True)
        lost = busy & ~(curvature > 0)
        busy &= ~lost  # of a matrix without full rank nothing but rounding may be left
        if bool((lost & ~(product <= precision * first)).any()):
            raise NotPositiveDefinite(f"the Hessian is not positive definite with damping {damping:g}")
        step = torch.where(busy, product / curvature, 0.0)
        solution += step * direction
        residual -= step * image
        preconditioned = residual / scale
        renewed = (residual * preconditioned).sum(1, keepdim=True)
        direction = preconditioned + torch.where(busy, renewed / product, 0.0) * direction
        product = torch.where(busy, renewed, product)
    return solution
