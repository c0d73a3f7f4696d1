"""The weight whose outputs on pruned inputs come closest to those of a dense weight on dense inputs."""

import torch
from torch import Tensor

from prune_lab.errors import NotPositiveDefinite


def correction(shift: Tensor, hessian: Tensor, damping: float) -> Tensor:
    """``M = D (H + e I)^-1``: ``W + W M`` minimises ``mean |W x - V x'|^2 + e |V - W|^2`` over all ``V``.

    ``x`` are inputs in the dense model, ``x'`` those behind what is pruned. With ``C`` the mean of ``x x'^T``, that is
    ``W (C + e I) (H + e I)^-1``; and for any ``V`` the distance ``|W x - V x'|^2`` is that to the outputs
    ``(W + W M) x'``, but for the damping and for what no ``V`` can change. So what is to fit ``W x`` is pruned like
    ``W + W M``.

    Args:
        shift: ``D``, the mean of ``(x - x') x'^T``, ``(in, in)`` float32.
        hessian: ``H``, the mean of ``x' x'^T``, ``(in, in)`` float32; overwritten.
        damping: ``e`` as a share of the mean diagonal of ``H``. An input that was never active stays uncorrected.

    Returns:
        ``(in, in)`` float32.

    Raises:
        NotPositiveDefinite: the damped Hessian is not.

    Source: GPTAQ (Li et al., 2025, arXiv:2504.02692) for quantisation and DuoGPT (arXiv:2506.20194) for pruning have
    this target; the damping towards the weight itself is our own.
    """
    added = damping * hessian.diagonal().mean()
    hessian.diagonal().add_(added)
    hessian.diagonal().masked_fill_(hessian.diagonal() == 0, 1.0)
    factor, info = torch.linalg.cholesky_ex(hessian)
    if int(info):
        raise NotPositiveDefinite(f"the Hessian is not positive definite with damping {damping:g}")
    return torch.cholesky_solve(shift.T, factor).T
