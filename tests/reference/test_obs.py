"""SparseGPT against the paper's loop written plainly in float64, and against exact solutions by brute force."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from prune_lab.pruning.solvers.obs import factorize, sparsegpt

DAMPING = 0.01
Agree = Callable[..., None]


@dataclass
class Problem:
    weight: Tensor  # (out, in) float32
    hessian: Tensor  # (in, in) float32, not damped

    @property
    def damped(self) -> np.ndarray:
        """The Hessian that the method minimises over, float64."""
        hessian = self.hessian.double().numpy().copy()
        diagonal = np.diagonal(hessian).copy()
        diagonal[diagonal == 0] = 1
        np.fill_diagonal(hessian, diagonal + DAMPING * diagonal.mean())
        return hessian

    @property
    def dead(self) -> np.ndarray:
        return (self.hessian.diagonal() == 0).numpy()

    def error(self, pruned: Tensor | np.ndarray) -> float:
        """``tr((W - W') H (W - W')^T)`` with the damped Hessian."""
        change = self.weight.double().numpy() - np.asarray(pruned, dtype=np.float64)
        return float(np.einsum("ij,jk,ik->", change, self.damped, change))

    def solve(
        self,
        sparsity: float,
        n_of_m: tuple[int, int] | None = None,
        block_size: int = 128,
        zero: Tensor | None = None,
    ) -> Tensor:
        factor = factorize(self.hessian, DAMPING)
        return sparsegpt(self.weight, factor, sparsity, n_of_m, block_size=block_size, zero=zero)


def problem(out: int = 12, inputs: int = 48, seed: int = 0, dead: tuple[int, ...] = (), tokens: int = 400) -> Problem:
    """Inputs with strong correlations, as real activations have them."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator) / inputs**0.5 + torch.eye(inputs)
    x = torch.randn(tokens, inputs, generator=generator) @ mixing
    x[:, list(dead)] = 0
    return Problem(torch.randn(out, inputs, generator=generator), x.T @ x / tokens)


@pytest.fixture
def agree(plain_sparsegpt) -> Agree:
    """Compares the solver with the plain loop."""

    def compare(
        case: Problem,
        sparsity: float,
        n_of_m: tuple[int, int] | None,
        block_size: int,
        zero: Tensor | None = None,
    ) -> None:
        before = case.weight.clone()
        pruned = case.solve(sparsity, n_of_m, block_size, zero)
        expected, squared_errors = plain_sparsegpt(
            case.weight.double().numpy(),
            case.damped,
            case.dead,
            sparsity,
            n_of_m,
            block_size,
            None if zero is None else zero.numpy(),
        )
        assert torch.equal(case.weight, before)
        assert pruned.dtype == torch.float32
        assert np.array_equal(pruned.numpy() != 0, expected != 0)
        np.testing.assert_allclose(pruned.numpy(), expected, rtol=1e-3, atol=1e-4)
        # W0 - W = E U, so the error of the layer is the sum of the squared errors of the single steps
        assert case.error(pruned) == pytest.approx(squared_errors, rel=1e-3)

    return compare


@pytest.mark.parametrize("block_size", [1, 7, 16, 17, 32, 128])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.77])
def test_unstructured_equals_the_plain_loop(agree, sparsity, block_size):
    agree(problem(), sparsity, None, block_size)


@pytest.mark.parametrize("block_size", [1, 10, 16, 128])
@pytest.mark.parametrize("n_of_m", [(2, 4), (4, 8), (1, 4), (3, 4), (1, 2), (5, 12), (10, 24)])
def test_patterns_equal_the_plain_loop(agree, n_of_m, block_size):
    agree(problem(seed=1), 0.0, n_of_m, block_size)


@pytest.mark.parametrize(("sparsity", "n_of_m"), [(0.5, None), (0.1, None), (0.0, (2, 4)), (0.0, (4, 8))])
@pytest.mark.parametrize("dead", [(0,), (3, 4, 5, 6, 7), (47,), (0, 20, 47)])
def test_dead_inputs_equal_the_plain_loop(agree, dead, sparsity, n_of_m):
    agree(problem(seed=2, dead=dead), sparsity, n_of_m, 16)


@pytest.mark.parametrize(("out", "inputs"), [(1, 48), (48, 8), (3, 130), (5, 1)])
def test_other_shapes_equal_the_plain_loop(agree, out, inputs):
    agree(problem(out, inputs, seed=3), 0.5, None, 32)


def test_a_layer_wider_than_a_block_of_columns_equals_the_plain_loop(agree):
    agree(problem(out=20, inputs=300, seed=4, tokens=2000), 0.6, None, 128)
    agree(problem(out=20, inputs=300, seed=5, tokens=2000), 0.0, (2, 4), 128)


def with_zeros(case: Problem, most: float) -> Tensor:
    """Makes weights of a problem zero, from none of the first column to the share ``most`` of the last; where."""
    out, inputs = case.weight.shape
    shares = torch.linspace(0, most, inputs)
    zero = torch.rand(out, inputs, generator=torch.Generator().manual_seed(9)) < shares
    case.weight[zero] = 0
    return zero


@pytest.mark.parametrize("block_size", [1, 7, 16, 128])
@pytest.mark.parametrize(("sparsity", "n_of_m"), [(0.2, None), (0.5, None), (0.77, None), (0, (2, 4)), (0, (10, 24))])
@pytest.mark.parametrize("most", [0.1, 0.9])
def test_zeros_that_stay_equal_the_plain_loop(agree, most, sparsity, n_of_m, block_size):
    case = problem(seed=6, dead=(5, 30))
    zero = with_zeros(case, most)
    agree(case, sparsity, n_of_m, block_size, zero)
    gone = case.solve(sparsity, n_of_m, block_size, zero) == 0
    assert bool(gone[zero].all())
    if n_of_m is None:
        assert int(gone.sum()) == max(int(sparsity * 12 * 48), int(zero.sum()))


def test_a_layer_of_zeros_stays_one():
    case = problem()
    case.weight.zero_()
    assert not case.solve(0.5, zero=case.weight == 0).any()


def constrained_change(hessian: np.ndarray, column: int, value: float) -> np.ndarray:
    """The cheapest change ``d`` by ``d H d^T`` that takes ``value`` from a column and touches later columns only."""
    change = np.zeros(len(hessian))
    change[column] = -value
    later = slice(column + 1, None)
    change[later] = np.linalg.solve(hessian[later, later], -hessian[later, column] * change[column])
    return change


@pytest.mark.parametrize("seed", range(5))
def test_every_step_is_the_exact_solution_on_eight_columns(seed):
    case = problem(out=4, inputs=8, seed=seed)
    pruned = case.solve(0.5)
    expected = case.weight.double().numpy().copy()
    for row, kept in zip(expected, pruned.numpy() != 0, strict=True):
        for column in np.flatnonzero(~kept):
            row += constrained_change(case.damped, column, row[column])
            row[column] = 0.0
    np.testing.assert_allclose(pruned.numpy(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_the_mask_drops_the_weights_that_cost_least_on_eight_columns(seed):
    case = problem(out=4, inputs=8, seed=seed)
    weight, hessian = case.weight.double().numpy(), case.damped
    costs = np.zeros_like(weight)
    for row in range(4):
        for column in range(8):
            change = constrained_change(hessian, column, weight[row, column])
            costs[row, column] = change @ hessian @ change
    keep = np.ones(costs.size, dtype=bool)
    keep[np.argsort(costs.ravel())[:16]] = False
    assert np.array_equal(case.solve(0.5).numpy() != 0, keep.reshape(4, 8))


@pytest.mark.parametrize("seed", range(3))
def test_removing_the_first_weight_is_the_closed_form_of_optimal_brain_surgeon(seed):
    case = problem(out=1, inputs=8, seed=seed)
    case.weight[0, 0] = 1e-2  # so that it is the one to go
    weight, inverse = case.weight.double().numpy()[0], np.linalg.inv(case.damped)
    expected = weight - weight[0] / inverse[0, 0] * inverse[0]
    expected[0] = 0.0
    pruned = case.solve(1 / 8)
    np.testing.assert_allclose(pruned.numpy()[0], expected, rtol=1e-4, atol=1e-6)
    assert case.error(pruned) == pytest.approx(weight[0] ** 2 / inverse[0, 0], rel=1e-3)


def test_removing_the_last_weight_leaves_the_others():
    case = problem(out=1, inputs=8)
    case.weight[0, 7] = 1e-3
    pruned = case.solve(1 / 8)
    torch.testing.assert_close(pruned[0, :7], case.weight[0, :7])
    assert pruned[0, 7] == 0


@pytest.mark.parametrize("n_of_m", [None, (2, 4)])
@pytest.mark.parametrize("seed", range(5))
def test_the_updates_lower_the_error_of_the_mask(seed, n_of_m):
    case = problem(seed=seed)
    pruned = case.solve(0.5, n_of_m)
    assert case.error(pruned) < 0.9 * case.error(case.weight * (pruned != 0))
