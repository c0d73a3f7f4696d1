"""Symmetric products of tall matrices, computed on one side of the diagonal only."""

from torch import Tensor


def accumulate_upper(total: Tensor, x: Tensor) -> None:
    """Adds the upper triangle of ``x^T x`` to ``total``, ``(n, n)``; below it, ``total`` means nothing.

    Row panels of a few hundred rows, each from its diagonal on, take 58 % of the whole product.

    Args:
        total: changed in place.
        x: ``(tokens, n)``, of the type of ``total``.
    """
    width = x.shape[1]
    panel = max(128, -(-width // 6))
    for start in range(0, width, panel):
        total[start : start + panel, start:].addmm_(x[:, start : start + panel].T, x[:, start:])


def mirror_upper(matrix: Tensor) -> Tensor:
    """The symmetric matrix that has the upper triangle of this one."""
    upper = matrix.triu()
    return upper + upper.triu(1).T
