"""What a product of two thin matrices makes up for of a pruned layer's error. Tensors in, tensors out."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SparseLowRank:
    """A sparse weight and the low-rank part beside it.

    Attributes:
        weight: ``S``, ``(out, in)``.
        order: of the input channels, ``(in,)`` int64, in which an N:M pattern of ``S`` holds; ``None``: as they are.
        up: ``U``, ``(out, rank)`` in the type of ``S``.
        down: ``V``, ``(rank, in)``, likewise.
        round: in which they were found, from 0.
        error: ``tr((W - S - U V) H (W - S - U V)^T)``.
    """

    weight: Tensor
    order: Tensor | None
    up: Tensor
    down: Tensor
    round: int
    error: float


def by_turns(
    goal: Tensor,
    sparse: Tensor,
    hessian: Tensor,
    rank: int,
    damping: float,
    rounds: int,
    prune: Callable[[Tensor], tuple[Tensor, Tensor | None]],
) -> SparseLowRank:
    """Fits a low-rank part to what a pruning lost, then prunes what the part leaves of the weight, and so on.

    Args:
        goal: ``W``, ``(out, in)`` float32.
        sparse: what the first pruning has made of it, in the type of the model.
        hessian: as in `fit_low_rank`.
        rank: likewise.
        damping: likewise.
        rounds: how often a part is fitted.
        prune: another weight ``(out, in)``; returns it pruned, and the order of the channels.

    Returns:
        The round with the least error, which need not be the last.
    """
    weight, order = sparse, None
    best: SparseLowRank | None = None
    for number in range(rounds):
        found = with_part(goal, weight, order, hessian, rank, damping, number)
        if best is None or found.error < best.error:
            best = found
        if number + 1 < rounds:
            weight, order = prune(goal - found.up.float() @ found.down.float())
            weight = weight.to(sparse.dtype)
    assert best is not None, "there is a round"
    return best


def with_part(
    goal: Tensor, weight: Tensor, order: Tensor | None, hessian: Tensor, rank: int, damping: float, number: int
) -> SparseLowRank:
    """The best low-rank part beside a sparse weight, in its type, and the error of both.

    Args:
        goal: ``W``, ``(out, in)`` float32.
        weight: ``S``, likewise, in the type of the model.
        order: of the input channels, see `SparseLowRank`.
        hessian: as in `fit_low_rank`.
        rank: likewise.
        damping: likewise.
        number: of the round.
    """
    residual = goal - weight.float()
    up, down = (part.to(weight.dtype) for part in fit_low_rank(residual, hessian, rank, damping))
    left = residual - up.float() @ down.float()
    return SparseLowRank(weight, order, up, down, number, float((left @ hessian).mul_(left).sum()))


def fit_low_rank(residual: Tensor, hessian: Tensor, rank: int, damping: float) -> tuple[Tensor, Tensor]:
    """``argmin |(E - U V) H^(1/2)|`` over all ``U V`` of a rank, ``H`` being damped.

    With ``H = R R^T`` the optimum is ``SVD_r(E R) R^-1``. If ``U`` has the first left singular vectors of ``E R``, that
    is ``U U^T E R R^-1 = U (U^T E)``: neither a root of ``H`` nor its inverse is needed. As ``U U^T`` is a projection,
    the error with any ``H``, damped or not, is never above that without ``U V``, and falls with every rank more.

    ``U`` are eigenvectors of ``E H E^T``, ``(out, out)``. Where there are fewer inputs than outputs they are found from
    those of ``(E R)^T E R``, ``(in, in)``, with the Cholesky factor; if there is none, as without damping inputs may be
    dependent, in the first way. All is done in float64.

    Args:
        residual: ``E``, what is to be made up for, ``(out, in)``, any float type.
        hessian: of the layer's inputs, ``(in, in)``, symmetric, any scale.
        rank: of the product, from 1 to the lesser of ``out`` and ``in``.
        damping: added to the diagonal of the Hessian, as a share of its mean.

    Returns:
        ``(out, rank)`` and ``(rank, in)`` float32. Column i of the first is as long as row i of the second, so that
        both fit into half precision, and a training moves them at one pace.

    Source: the optimum is that of EoRA (Liu et al., 2024, arXiv:2410.21271), which computes the root and its inverse.
    """
    error, matrix = residual.double(), hessian.double()
    matrix = matrix + torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device) * (
        damping * matrix.diagonal().mean()
    )
    left = _left_vectors(error, matrix, rank)
    right = left.T @ error
    length = torch.linalg.vector_norm(right, dim=1).sqrt()
    up = left * length
    down = right / length.clamp_min(torch.finfo(length.dtype).tiny)[:, None]
    return up.float().contiguous(), down.float().contiguous()  # a QR is column by column


def _left_vectors(error: Tensor, matrix: Tensor, rank: int) -> Tensor:
    """The first left singular vectors of ``E R``, ``(out, rank)``, orthonormal whatever was rounded."""
    rows, columns = error.shape
    if columns < rows:
        factor, info = torch.linalg.cholesky_ex(matrix)
        if not int(info):
            scaled = error @ factor
            vectors = torch.linalg.eigh(scaled.T @ scaled).eigenvectors[:, -rank:].flip(1)  # ascending otherwise
            found: Tensor = torch.linalg.qr(scaled @ vectors).Q
            return found
    eigenvectors: Tensor = torch.linalg.eigh(error @ matrix @ error.T).eigenvectors
    return eigenvectors[:, -rank:].flip(1)
