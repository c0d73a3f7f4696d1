import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.activations import ACT2FN

from prune_lab.errors import NotPositiveDefinite
from prune_lab.pruning.solvers.auxiliary import PStep, solve_through, solve_z_gated, solve_z_relu

WEIGHTS = st.floats(0.01, 100)
SEEDS = st.integers(0, 10_000)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def p_cost(p: Tensor, h: Tensor, y: Tensor, down: Tensor, beta: float, gamma: float) -> Tensor:
    """Of each token, float64."""
    p, h, y, down = (tensor.double() for tensor in (p, h, y, down))
    return beta * (y - p @ down.T).square().sum(1) + gamma * (p - h).square().sum(1)


@pytest.mark.parametrize(("out", "hidden"), [(4, 16), (16, 4), (7, 7), (1, 5)])
@pytest.mark.parametrize(("beta", "gamma"), [(0.1, 0.1), (5.0, 0.2), (0.1, 30.0)])
def test_the_small_inverse_gives_the_papers_p(out, hidden, beta, gamma):
    down, h, y = normal(out, hidden, seed=0), normal(20, hidden, seed=1), normal(20, out, seed=2)
    quadratic = beta * down.T @ down + gamma * torch.eye(hidden)
    expected = (beta * y @ down + gamma * h) @ torch.linalg.inv(quadratic)
    torch.testing.assert_close(PStep(down, beta, gamma)(h, y), expected, rtol=1e-3, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(SEEDS, WEIGHTS, WEIGHTS)
def test_the_p_step_never_raises_the_objective(seed, beta, gamma):
    down, h, y, p = normal(3, 8, seed=seed), normal(10, 8, seed=seed + 1), normal(10, 3, seed=seed + 2), None
    for p in (h, normal(10, 8, seed=seed + 3)):
        after = p_cost(PStep(down, beta, gamma)(h, y), h, y, down, beta, gamma)
        before = p_cost(p, h, y, down, beta, gamma)
        assert (after <= before * (1 + 1e-4) + 1e-6).all()


def test_a_down_projection_that_is_not_finite_is_refused():
    with pytest.raises(NotPositiveDefinite, match=r"raise gamma"):
        PStep(torch.tensor([[float("inf"), 1.0]]), 1.0, 1.0)


def z_cost(z: Tensor, m: Tensor, p: Tensor, phi: Tensor, alpha: float, gamma: float) -> Tensor:
    return alpha * (z - m).square() + gamma * (p - phi).square()


@pytest.mark.parametrize(
    ("m", "p", "z"),
    [
        (2.0, 4.0, 3.0),  # both pull upwards: half way
        (-2.0, 1.0, -2.0),  # going up to 0 costs 4, staying costs 1
        (-0.5, 3.0, 1.25),  # 3.0625 x 2 = 6.125 on the way up, 9 for staying
        (1.0, -3.0, 0.0),  # down to the kink, and no further: 1 + 9; at -1 it would be 4 + 9
        (-1.0, 0.0, -1.0),
    ],
)
def test_the_z_step_by_hand(m, p, z):
    found = solve_z_relu(torch.tensor([m]), torch.tensor([p]), 1.0, 1.0)
    assert found.tolist() == [pytest.approx(z)]


@pytest.mark.parametrize(("alpha", "gamma"), [(0.1, 0.1), (1.0, 10.0), (3.0, 0.2)])
def test_the_z_step_equals_a_search_over_a_grid(alpha, gamma):
    m, p = 2 * normal(500, seed=0), 2 * normal(500, seed=1)
    z = solve_z_relu(m, p, alpha, gamma)
    grid = torch.linspace(-10, 10, 8001)[:, None]
    least = z_cost(grid, m, p, grid.relu(), alpha, gamma).amin(0)
    assert (z_cost(z, m, p, z.relu(), alpha, gamma) <= least * (1 + 1e-5) + 1e-5).all()


@settings(max_examples=50, deadline=None)
@given(SEEDS, WEIGHTS, WEIGHTS)
def test_no_z_step_raises_the_objective(seed, alpha, gamma):
    m, p, before, gate = (3 * normal(64, seed=seed + i) for i in range(4))
    z = solve_z_relu(m, p, alpha, gamma)
    assert (z_cost(z, m, p, z.relu(), alpha, gamma) <= z_cost(before, m, p, before.relu(), alpha, gamma) + 1e-3).all()
    z = solve_z_gated(m, p, gate, alpha, gamma)
    after, earlier = (z_cost(value, m, p, gate * value, alpha, gamma) for value in (z, before))
    assert (after <= earlier * (1 + 1e-4) + 1e-3).all()


def test_the_gated_z_step_for_any_alpha_and_gamma():
    m, p, gate = (normal(50, seed=i).double() for i in range(3))
    for alpha, gamma in ((1.0, 1.0), (0.3, 7.0)):
        z = solve_z_gated(m, p, gate, alpha, gamma)
        slope = alpha * (z - m) - gamma * gate * (p - gate * z)
        assert slope.abs().max() < 1e-12


@pytest.mark.parametrize("name", ["silu", "gelu_new", "gelu", "relu"])
@pytest.mark.parametrize(("alpha", "gamma"), [(5.0, 5.0), (0.2, 2.0)])
def test_the_search_through_an_activation_comes_close_to_a_grid(name, alpha, gamma):
    activation = ACT2FN[name]
    m, scale = normal(2000, seed=0), normal(2000, seed=1)
    p = scale * activation(m + 0.3 * normal(2000, seed=2)) + 0.1 * normal(2000, seed=3)
    found = solve_through(activation, m, p, scale, m + normal(2000, seed=4), alpha, gamma)
    grid = torch.linspace(-8, 8, 4001)[:, None]
    least = z_cost(grid, m, p, scale * activation(grid), alpha, gamma).amin(0)
    excess = z_cost(found, m, p, scale * activation(found), alpha, gamma) - least
    assert excess.mean() < 0.01 * least.mean()
    assert (excess < 1e-3).float().mean() > 0.98


@settings(max_examples=40, deadline=None)
@given(SEEDS, WEIGHTS, WEIGHTS, st.sampled_from(["silu", "gelu", "relu"]))
def test_the_search_never_ends_above_its_start(seed, alpha, gamma, name):
    activation = ACT2FN[name]
    m, p, scale, start = (3 * normal(64, seed=seed + i) for i in range(4))
    found = solve_through(activation, m, p, scale, start, alpha, gamma)
    before = z_cost(start, m, p, scale * activation(start), alpha, gamma)
    assert (z_cost(found, m, p, scale * activation(found), alpha, gamma) <= before * (1 + 1e-5)).all()
    assert torch.isfinite(found).all()


def test_large_inputs_are_searched_in_parts_with_the_same_result():
    m, p, scale, start = (normal(300, 150, seed=i) for i in range(4))  # more than are searched at once
    whole = solve_through(ACT2FN["silu"], m, p, scale, start, 1.0, 1.0)
    rows = [solve_through(ACT2FN["silu"], *some, 1.0, 1.0) for some in zip(m, p, scale, start, strict=True)]
    torch.testing.assert_close(whole, torch.stack(rows), rtol=1e-2, atol=1e-3)


def plain_search(activation, m, p, scale, start, alpha, gamma) -> float:
    """The best of three points, and three Gauss-Newton steps, each a quarter as long after one that did not help."""

    def cost(s: Tensor) -> Tensor:
        return alpha * (s - m) ** 2 + gamma * (p - scale * activation(s)) ** 2

    far = (p / scale).clamp(-1e4, 1e4) if scale else torch.zeros_like(p)
    best, reach = min((start, m, far), key=cost), 1.0
    for _ in range(3):
        s = best.clone().requires_grad_()
        slope = scale * torch.autograd.grad(activation(s), s)[0]
        gradient = alpha * (best - m) - gamma * slope * (p - scale * activation(best))
        other = best - reach * gradient / (alpha + gamma * slope**2)
        best, reach = (other, reach) if cost(other) < cost(best) else (best, reach / 4)
    return float(best)


@pytest.mark.parametrize("name", ["silu", "gelu", "relu"])
def test_the_search_takes_the_steps_of_the_plain_loop(name):
    activation, (alpha, gamma) = ACT2FN[name], (0.3, 2.0)
    tensors = [4 * normal(60, seed=i).double() for i in range(4)]
    tensors[2][:3] = 0
    tensors[1][3:6] = torch.tensor([3e4, -3e4, 1e6])
    found = solve_through(activation, *tensors, alpha, gamma)
    expected = [plain_search(activation, *each, alpha, gamma) for each in zip(*tensors, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)
