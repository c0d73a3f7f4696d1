import numpy as np
import pytest
import torch

from prune_lab.errors import NotPositiveDefinite
from prune_lab.pruning.solvers import least_squares
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


@pytest.mark.parametrize("iterations", [0, 2, 60])
def test_values_to_begin_with_shorten_the_way_and_leave_its_end(iterations):
    """From near the solution on a few steps are closer than as many from the weight on; many end at the same place."""
    x, weight, keep = problem(seed=5)
    hessian = x.T @ x
    exact = refit(weight, keep, hessian, damping=0.0)
    near = exact + 0.01 * torch.randn_like(exact)  # also where nothing is kept
    found = refit(weight, keep, hessian, damping=0.0, iterations=iterations, start=near)
    assert not found[~keep].any()
    if iterations == 0:
        assert torch.equal(found, near * keep)
        return
    plain = refit(weight, keep, hessian, damping=0.0, iterations=iterations)
    if iterations == 2:
        assert (found - exact).norm() < 0.1 * (plain - exact).norm()
    else:
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)


def test_rows_that_are_done_keep_their_values_while_others_go_on(monkeypatch):
    """Every second row begins at its solution, so that half of them are done at once, and the products get shorter."""
    x, weight, keep = problem(seed=6, out=16)
    hessian, shapes, step = x.T @ x, [], least_squares._Rows.step
    exact = refit(weight, keep, hessian, damping=0.0)
    start = exact.clone()
    start[::2] = weight[::2]
    monkeypatch.setattr(
        least_squares._Rows, "step", lambda self, *given: (shapes.append(len(self.mask)), step(self, *given))[1]
    )
    found = refit(weight, keep, hessian, damping=0.0, start=start)
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-4)
    assert torch.equal(found[1::2], exact[1::2])
    assert shapes[0] == 8 and shapes == sorted(shapes, reverse=True) and shapes[-1] < 8


@pytest.mark.parametrize("first", [-1.0, 0.0])
def test_a_matrix_that_is_not_positive_definite_is_refused(first):
    with pytest.raises(NotPositiveDefinite, match="damping 0"):
        refit(torch.ones(1, 2), torch.tensor([[True, False]]), torch.tensor([[first, 0.5], [0.5, 1.0]]), damping=0.0)


@pytest.mark.parametrize(("tokens", "damping"), [(200, 0.0), (24, 0.0), (12, 0.01)])
@pytest.mark.parametrize("seed", range(3))
def test_no_tolerance_is_too_small(tokens, damping, seed):
    """What is left by rounding is no sign of a matrix that is not positive definite."""
    x, weight, keep = problem(seed, out=24, tokens=tokens)
    found = refit(weight, keep, x.T @ x, damping=damping, iterations=1000, tolerance=0.0)
    rows = torch.cat([x, (damping * (x**2).sum(0).mean()).sqrt() * torch.eye(x.shape[1])]).double()
    for row, kept, result in zip(weight.double(), keep, found.double(), strict=True):
        best = torch.linalg.lstsq(rows[:, kept], (rows @ row)[:, None], driver="gelsd").solution[:, 0]
        least = (rows @ row - rows[:, kept] @ best).square().sum()
        assert (rows @ (row - result)).square().sum() <= least * (1 + 1e-5) + 1e-5
        assert not result[~kept].any()


def plain_conjugate_gradient(weight, keep, hessian, damping, iterations, tolerance) -> np.ndarray:
    """Of one row, on the submatrix of what is kept, preconditioned by the diagonal, from the kept weights on."""
    matrix = hessian + damping * np.diag(hessian).mean() * np.eye(len(hessian))
    goal, inner = (matrix @ weight)[keep], matrix[keep][:, keep]
    solution = weight[keep].copy()
    residual = goal - inner @ solution
    direction = product = first = None
    for number in range(iterations):
        scaled = residual / np.diag(inner)
        before, product = product, residual @ scaled
        first = product if number == 0 else first
        if product <= tolerance**2 * first:
            break
        direction = scaled if number == 0 else scaled + product / before * direction
        step = product / (direction @ inner @ direction)
        solution = solution + step * direction
        residual = residual - step * (inner @ direction)
    found = np.zeros_like(weight)
    found[keep] = solution
    return found


@pytest.mark.parametrize("keys", [{}, {"iterations": 0}, {"iterations": 3}, {"tolerance": 0.02}, {"tolerance": 1e-8}])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_it_takes_the_steps_of_plain_conjugate_gradient(damping, keys):
    x, weight, keep = problem(seed=5, out=20, inputs=60)
    x[:, 4] *= 10
    hessian = (x.T @ x).double()
    found = refit(weight.double(), keep, hessian, damping=damping, **keys)
    assert found.dtype == torch.float64
    settings = {"iterations": 200, "tolerance": 1e-5} | keys
    for row, kept, result in zip(weight.double().numpy(), keep.numpy(), found.numpy(), strict=True):
        expected = plain_conjugate_gradient(row, kept, hessian.numpy(), damping, **settings)
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-8)


def test_two_hundred_steps_are_the_most():
    """The matrix of second differences of 300 points, for which conjugate gradient needs as many steps as weights."""
    hessian = 2 * np.eye(300) - np.eye(300, k=1) - np.eye(300, k=-1)
    weight = np.random.default_rng(0).normal(size=300)
    keep = np.arange(300) > 0
    found = refit(torch.from_numpy(weight)[None], torch.from_numpy(keep)[None], torch.from_numpy(hessian), damping=0.0)
    results = [plain_conjugate_gradient(weight, keep, hessian, 0.0, steps, 1e-5) for steps in (199, 200, 201)]
    np.testing.assert_allclose(found[0], results[1], rtol=1e-6, atol=1e-9)
    assert min(np.abs(results[1] - each).max() for each in (results[0], results[2])) > 1e-6
