import numpy as np
import pytest
import torch

from prune_lab.errors import NotPositiveDefinite
from prune_lab.pruning.solvers.least_squares import refit


def problem(seed: int = 0, out: int = 6, inputs: int = 20, tokens: int = 200):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator) / inputs**0.5 + torch.eye(inputs)
    x = torch.randn(tokens, inputs, generator=generator) @ mixing
    keep = torch.rand(out, inputs, generator=generator) > 0.6
    return x, torch.randn(out, inputs, generator=generator), keep


def test_every_row_is_the_least_squares_solution_on_its_support():
    x, weight, keep = problem()
    found = refit(weight, keep, x.T @ x, damping=0.0)
    for row, kept, result in zip(weight, keep, found, strict=True):
        expected, *_ = np.linalg.lstsq(x[:, kept].double().numpy(), (x @ row).double().numpy(), rcond=None)
        np.testing.assert_allclose(result[kept].numpy(), expected, rtol=1e-3, atol=1e-4)
        assert not result[~kept].any()


def test_a_full_support_leaves_the_weight_and_an_empty_row_stays_empty():
    x, weight, keep = problem()
    keep[0], keep[1] = True, False
    found = refit(weight, keep, x.T @ x, damping=0.01)
    assert torch.equal(found[0], weight[0])
    assert not found[1].any()


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_more_iterations_never_raise_the_error(damping):
    x, weight, keep = problem(seed=3)
    hessian = x.T @ x
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian))
    errors = []
    for iterations in (0, 1, 2, 4, 8, 30):
        change = weight - refit(weight, keep, hessian, damping=damping, iterations=iterations)
        errors.append(float(((change @ damped) * change).sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[0]


def test_a_matrix_that_is_not_positive_definite_is_refused():
    with pytest.raises(NotPositiveDefinite, match="damping 0"):
        refit(torch.ones(1, 2), torch.tensor([[True, False]]), torch.tensor([[-1.0, 0.5], [0.5, 1.0]]), damping=0.0)
