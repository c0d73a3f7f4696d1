from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from prune_lab.pruning.solvers.low_rank import fit_low_rank

SHAPES = [(6, 10), (10, 6), (8, 8)]


def problem(rows: int, columns: int, seed: int = 0, tokens: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """What a pruning lost, correlated inputs ``(tokens, in)`` of unequal sizes, and their Hessian."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) * torch.logspace(-1, 1, columns)
    x = torch.randn(tokens, columns, generator=generator) @ mixing
    error = torch.randn(rows, columns, generator=generator)
    return error * (torch.rand(rows, columns, generator=generator) < 0.5), x, x.T @ x / tokens


def left(error: Tensor, pair: tuple[Tensor, Tensor], x: Tensor) -> float:
    return float(((error - pair[0] @ pair[1]).double() @ x.double().T).square().sum())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("damping", [0.0, 0.01, 0.5])
def test_it_is_the_optimum_that_the_root_of_the_hessian_gives(shape, damping):
    """Against the closed form of EoRA with scipy's root: ``SVD_r(E H^(1/2)) H^(-1/2)``."""
    error, _, hessian = problem(*shape)
    damped = hessian.double().numpy() + damping * float(hessian.diagonal().mean()) * np.eye(shape[1])
    root = scipy.linalg.sqrtm(damped).real
    u, s, v = np.linalg.svd(error.double().numpy() @ root)
    for rank in range(1, min(shape) + 1):
        expected = (u[:, :rank] * s[:rank]) @ v[:rank] @ np.linalg.inv(root)
        up, down = fit_low_rank(error, hessian, rank, damping)
        assert (up.shape, down.shape) == ((shape[0], rank), (rank, shape[1]))
        np.testing.assert_allclose((up @ down).numpy(), expected, atol=2e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("damping", [0.0, 0.01, 10.0])
def test_the_error_falls_with_the_rank_from_that_without_it_to_none(shape, damping):
    error, x, hessian = problem(*shape, seed=1)
    alone = float((error.double() @ x.double().T).square().sum())
    errors = [left(error, fit_low_rank(error, hessian, rank, damping), x) for rank in range(1, min(shape) + 1)]
    for before, after in zip([alone, *errors], errors, strict=False):
        assert after <= before * (1 + 1e-9)
    assert errors[0] < 0.95 * alone
    assert errors[-1] < 1e-9 * alone


def test_no_step_of_a_descent_finds_better():
    """An independent solver: alternating least squares from random starts comes to the same error and no lower."""
    error, x, hessian = problem(7, 9, seed=2)
    best = left(error, fit_low_rank(error, hessian, 2, 0.0), x)
    found, target = [], (x @ error.T).double().numpy()  # (tokens, out)
    for seed in range(5):
        up = np.random.default_rng(seed).normal(size=(7, 2))
        for _ in range(300):
            # rows of `down` for a given `up`, then `up` for a given `down`
            down = np.linalg.lstsq(x.double().numpy(), target @ np.linalg.pinv(up).T, rcond=None)[0].T
            up = np.linalg.lstsq(x.double().numpy() @ down.T, target, rcond=None)[0].T
        found.append(np.square(target - x.double().numpy() @ down.T @ up.T).sum())
    assert min(found) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_inputs_that_depend_on_each_other_need_no_damping(shape):
    """There is no Cholesky factor then; what is made up for is exact on all inputs that there are."""
    error, x, _ = problem(*shape, seed=3)
    x = x.clone()
    x[:, 1], x[:, 2] = x[:, 0], 0
    hessian = x.T @ x
    errors = [left(error, fit_low_rank(error, hessian, rank, 0.0), x) for rank in range(1, min(shape) + 1)]
    alone = float((error.double() @ x.double().T).square().sum())
    assert all(after <= before + 1e-9 * alone for before, after in pairwise(errors))
    assert errors[0] < alone
    assert errors[-1] < 1e-9 * alone


def test_both_factors_are_of_one_size_and_nothing_lost_gives_nothing():
    error, _, hessian = problem(6, 10)
    up, down = fit_low_rank(error, hessian, 3, 0.01)
    torch.testing.assert_close(up.norm(dim=0), down.norm(dim=1))
    for part in fit_low_rank(torch.zeros(10, 6), torch.eye(6), 2, 0.01):
        assert part.count_nonzero() == 0
