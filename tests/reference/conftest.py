from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor


@pytest.fixture
def layer() -> Callable[..., tuple[Tensor, Tensor]]:
    """Makes a weight ``(out, in)`` and its inputs ``(tokens, in)``, as correlated and uneven as activations are."""

    def make(out: int = 10, inputs: int = 24, tokens: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        mixing = torch.randn(inputs, inputs, generator=generator) / inputs**0.5 + torch.eye(inputs)
        sizes = torch.exp(torch.randn(inputs, generator=generator))
        x = (torch.randn(tokens, inputs, generator=generator) @ mixing + 0.5) * sizes
        return torch.randn(out, inputs, generator=generator), x

    return make


@pytest.fixture
def plain_sparsegpt() -> Callable[..., tuple[np.ndarray, float]]:
    return _plain_sparsegpt


def _plain_sparsegpt(
    weight: np.ndarray,
    hessian: np.ndarray,
    dead: np.ndarray,
    sparsity: float,
    n_of_m: tuple[int, int] | None,
    block_size: int,
    zero: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """Algorithm 1 of the paper with ``floor(s n)`` weights dropped; also the sum of its squared errors ``E``.

    Weights that are ``zero`` go whatever they cost and count as dropped; what goes besides is spread over the blocks of
    columns by the number of weights that are not zero.
    """
    w, (out, inputs) = weight.copy(), weight.shape
    zero = np.zeros(w.shape, dtype=bool) if zero is None else zero
    besides = max(0, int(np.floor(sparsity * w.size + 1e-9)) - zero.sum())
    keep = np.ones_like(w, dtype=bool)
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T  # H^-1 = U^T U
    if n_of_m:
        block_size = max(1, block_size // n_of_m[1]) * n_of_m[1]
    squared_errors, dropped = 0.0, 0
    for start in range(0, inputs, block_size):
        stop = min(start + block_size, inputs)
        if n_of_m is None:
            saliency = (w[:, start:stop] / np.diag(upper)[start:stop]) ** 2
            saliency[:, dead[start:stop]] = 0
            saliency[zero[:, start:stop]] = -np.inf
            goal = int(np.floor(sparsity * out * stop + 1e-9))
            if zero.any():
                goal = zero[:, :stop].sum() + besides * (~zero[:, :stop]).sum() // max(1, (~zero).sum())
            by_column = saliency.T.ravel()  # of equal ones the first in column order goes first
            chosen = np.argsort(by_column, kind="stable")[: goal - dropped]
            block = np.ones(by_column.size, dtype=bool)
            block[chosen] = False
            keep[:, start:stop] = block.reshape(stop - start, out).T
            dropped = goal
        for j in range(start, stop):
            if n_of_m and j % n_of_m[1] == 0:
                n, m = n_of_m
                saliency = (w[:, j : j + m] / np.diag(upper)[j : j + m]) ** 2
                saliency[:, dead[j : j + m]] = 0
                saliency[zero[:, j : j + m]] = -np.inf
                worst = np.argsort(saliency, axis=1, kind="stable")[:, : m - n]
                np.put_along_axis(keep[:, j : j + m], worst, False, axis=1)
                keep[:, j : j + m] &= ~zero[:, j : j + m]
            error = np.where(keep[:, j], 0.0, w[:, j]) / upper[j, j]
            w[:, j:] -= np.outer(error, upper[j, j:])
            w[~keep[:, j], j] = 0.0
            squared_errors += float(error @ error)
    return w, squared_errors
