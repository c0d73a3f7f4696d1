"""ADMM and ALPS: methods that find support and values of a layer at once."""

import pytest
import torch

from prune_lab.errors import BadInput, NotPositiveDefinite
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.masks import keep_all_but
from prune_lab.pruning.methods.admm import ADMM, select_mask
from prune_lab.pruning.methods.alps import ALPS
from prune_lab.pruning.methods.least_squares import LeastSquares
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.solvers import admm
from prune_lab.pruning.target import Target


def problem(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(24, 24, generator=generator) / 24**0.5 + torch.eye(24)
    x = torch.randn(400, 24, generator=generator) @ mixing
    return torch.randn(10, 24, generator=generator), x.T @ x


def solve(method, weight, hessian, level):
    class PrunableLinear:
        name = "layer"

    PrunableLinear.weight = PrunableLinear.present = weight

    class Given:
        value = hessian

        def release(self):
            return hessian.clone()

    return method.solve(PrunableLinear, method.prepare(Given()), Target(level=level))


def error(weight, pruned, hessian) -> float:
    change = (weight - pruned).double()
    return float(((change @ hessian.double()) * change).sum())


@pytest.mark.parametrize("level", [0.5, 0.7, 0.9])
def test_both_end_below_sparsegpt_and_magnitude_with_least_squares(level):
    worse = 0
    for seed in range(4):
        weight, hessian = problem(seed)
        greedy = error(weight, solve(SparseGPT(), weight, hessian, level), hessian)
        for method in (ADMM(damping=0.01, iterations=40, mask_iterations=30), ALPS()):
            pruned = solve(method, weight, hessian, level)
            assert int((pruned == 0).sum()) == int(level * 240 + 1e-9)
            worse += error(weight, pruned, hessian) > greedy
    assert worse == 0


def test_alps_finds_the_best_support_of_a_layer_with_one_row():
    """All supports of 3 out of 8 by brute force; ADMM is a heuristic, so close is enough."""
    weight, hessian = problem(1)
    weight, hessian = weight[:1, :8], hessian[:8, :8]
    best = min(
        error(weight, refitted(weight, hessian, support), hessian) for support in torch.combinations(torch.arange(8), 3)
    )
    assert error(weight, solve(ALPS(damping=1e-4), weight, hessian, 5 / 8), hessian) <= 1.1 * best


def refitted(weight, hessian, support):
    found = torch.zeros_like(weight)
    found[0, support] = torch.linalg.solve(hessian[support][:, support], hessian[support] @ weight[0])
    return found


def test_admm_under_a_fixed_mask_converges_to_least_squares():
    weight, hessian = problem()
    keep = keep_all_but(weight.abs().flatten(), 120).view_as(weight)
    scaled = admm.Scaled.of(hessian, 1e-4)
    shifted = scaled.matrix.clone()
    shifted.diagonal().add_(0.3)
    found = admm.admm(
        weight, scaled, admm.inverse(shifted), lambda *_: keep, iterations=400, mask_iterations=1, rho=0.3
    )
    for row, kept, result in zip(weight, keep, found, strict=True):
        expected = torch.linalg.solve(hessian[kept][:, kept], hessian[kept] @ row)
        torch.testing.assert_close(result[kept], expected, rtol=0.02, atol=0.01)


@pytest.mark.parametrize("rows", [3, 12, 40])
@pytest.mark.parametrize("rho", [0.02, 1.0, 50.0])
def test_products_with_a_penalised_inverse(rho, rows):
    _, hessian = problem()
    scaled = admm.Scaled.of(hessian, 0.01)
    right = torch.randn(rows, 24)
    expected = torch.linalg.solve(scaled.matrix + rho * torch.eye(24), right.T).T
    found = admm.penalised_solver(scaled.matrix, rho, rows)(right)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 8])
def test_a_penalty_that_float32_cannot_factorise_is_factorised_in_float64(rows):
    """A matrix of rank one, to whose ones float32 cannot add the penalty."""
    found = admm.penalised_solver(torch.ones(8, 8), 1e-8, rows)(torch.ones(rows, 8))
    torch.testing.assert_close(found.sum(1), torch.ones(rows), rtol=1e-4, atol=0.0)


def test_what_is_not_positive_definite_is_refused():
    with pytest.raises(NotPositiveDefinite, match="with a penalty of 3"):
        admm.penalised_solver(-4 * torch.eye(4), 3.0, 4)


def test_the_mask_grows_with_the_share():
    scores = torch.arange(16.0).view(2, 8)
    target = Target(level=0.5)
    assert [int((~select_mask(scores, share, target, "x", "layer")).sum()) for share in (0.0, 0.5, 1.0)] == [0, 4, 8]
    assert select_mask(scores, 1.0, target, "x", "row").sum(1).tolist() == [4, 4]


@pytest.mark.parametrize(
    ("share", "lost"), [(0.5, [3, 4, 2, 2]), (0.55, [3, 4, 3, 2]), (1.0, [6, 6, 5, 5]), (0.1, [0, 4, 0, 0])]
)
def test_rows_with_zeros_lose_as_many_as_the_others_and_the_first_one_more(share, lost):
    """Of 4 x 8 weights 22 are to go in the end; the second row has four zeros."""
    scores, zero = torch.arange(1.0, 33.0).view(4, 8), torch.zeros(4, 8, dtype=torch.bool)
    zero[1, 4:] = True
    keep = select_mask(scores, share, Target(level=0.69), "x", "row", zero)
    assert (~keep).sum(1).tolist() == lost
    assert not keep[zero].any()
    for row in (0, 2, 3):
        assert keep[row].tolist() == [False] * lost[row] + [True] * (8 - lost[row])


def test_a_pattern_is_thinned_by_the_lowest_of_those_that_will_go_not_by_equal_steps_of_every_group():
    scores, target = torch.arange(16.0).view(2, 8), Target("1:4")

    def kept(share: float, scope: str) -> list[int]:
        return select_mask(scores, share, target, "x", scope).view(4, 4).sum(1).tolist()

    assert kept(0.5, "layer") == [1, 1, 4, 4]
    assert kept(0.5, "row") == [1, 4, 1, 4]
    assert kept(1.0, "layer") == kept(1.0, "row") == [1, 1, 1, 1]
    assert kept(0.01, "layer") == [4, 4, 4, 4]


@pytest.mark.parametrize(
    "method", [ADMM(), ADMM(scope="row"), ALPS(), LeastSquares(Magnitude())], ids=lambda method: type(method).__name__
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["opt", "llama", "gemma3_text"])
def test_nothing_overflows_at_95_percent(tiny_model, random_tokens, family, dtype, method):
    model = tiny_model(family, dtype)
    method.prune(PruningContext(model, Target(level=0.95), Calibration(random_tokens(4, 16))))
    assert torch.isfinite(model.hf(random_tokens(2, 8)).logits).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ADMM(scope="model"), r"ADMM\.scope=\'model\'"),
        (lambda: ADMM(mask_iterations=30), r"ADMM\.mask_iterations=30 .*ADMM\.iterations=20"),
        (lambda: ADMM(rho=0), r"ADMM\.rho=0"),
        (lambda: ALPS(damping_of="all"), r"ALPS\.damping_of='all' .*mean, input"),
        (lambda: ALPS(damping=0), r"ALPS\.damping=0"),
        (lambda: ALPS(iterations=0), r"ALPS\.iterations=0"),
        (lambda: LeastSquares(Magnitude(), damping=0), r"LeastSquares\.damping=0"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(BadInput, match=message):
        make()
