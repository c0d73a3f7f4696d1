"""ADMM and ALPS against plain loops in float64, written from the papers and the authors' code."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prune_lab.pruning.calibration.statistics import Hessian
from prune_lab.pruning.methods.admm import ADMM
from prune_lab.pruning.methods.alps import ALPS
from prune_lab.pruning.solvers.admm import Scaled, _Penalty, alps_iterate
from prune_lab.pruning.target import Target


def lowest(scores: np.ndarray, count: int) -> np.ndarray:
    """Where the ``count`` lowest of all entries are."""
    gone = np.zeros(scores.size, dtype=bool)
    gone[np.argsort(scores.ravel(), kind="stable")[:count]] = True
    return gone.reshape(scores.shape)


def beyond_pattern(scores: np.ndarray, n: int, m: int) -> np.ndarray:
    """Where all but the ``n`` highest of each group of ``m`` entries of a row are."""
    gone = np.zeros(scores.shape, dtype=bool)
    for row in range(scores.shape[0]):
        for start in range(0, scores.shape[1], m):
            order = np.argsort(scores[row, start : start + m], kind="stable")
            gone[row, start + order[: m - n]] = True
    return gone


def thinned(scores: np.ndarray, level: float | tuple[int, int], scope: str, share: float) -> np.ndarray:
    """Which weights are gone when ``share`` of those to go are."""
    if isinstance(level, tuple):
        others = beyond_pattern(scores, *level)
        return lowest(np.where(others, scores, np.inf), int(share * others.sum() + 1e-9))
    count = int(share * int(level * scores.size + 1e-9) + 1e-9)
    if scope == "layer":
        return lowest(scores, count)
    return np.stack([lowest(row, count // len(scores) + (i < count % len(scores))) for i, row in enumerate(scores)])


def plain_admm(weight, hessian, level, scope, iterations, mask_iterations, damping, rho) -> np.ndarray:
    """ADMM-Grad as published: W, its sparse copy Z, and the scaled dual U, in coordinates of unit input norms."""
    norms = np.sqrt(np.diag(hessian))
    dead, norms = norms == 0, np.where(norms == 0, 1.0, norms)
    correlation = hessian / np.outer(norms, norms) + damping * np.eye(len(norms))
    inverse = np.linalg.inv(correlation + rho * np.eye(len(norms)))
    dense = weight * norms
    current, dual = dense.copy(), np.zeros_like(dense)
    gone = np.zeros(dense.shape, dtype=bool)
    for t in range(iterations):
        if t < mask_iterations:
            gone = thinned(
                np.where(dead, -1.0, np.abs(current + dual)), level, scope, 1 - (1 - (t + 1) / mask_iterations) ** 3
            )
        sparse = np.where(gone, 0, current + dual)
        dual = dual + current - sparse
        current = (dense @ correlation + rho * (sparse - dual)) @ inverse
    return np.where(gone, 0, current + dual) / norms


def plain_alps(weight, hessian, level, iterations, rho, damping, damping_of) -> np.ndarray:
    """ALPS: the iterate of ADMM with a growing penalty gives the support, least squares the values on it."""
    size = len(hessian)
    diagonal = np.diag(hessian)
    damped = hessian + np.diag(damping * (np.full(size, diagonal.mean()) if damping_of == "mean" else diagonal))
    norms = np.sqrt(np.diag(damped))
    if damping_of == "input":
        norms[diagonal == 0] = np.sqrt(1 + damping)
        damped = damped + np.diag(np.where(diagonal == 0, damping, 0.0))
    matrix, dense = damped / np.outer(norms, norms), weight * norms
    if damping_of == "input":  # there the coordinates are those of the Hessian before damping
        scale = np.sqrt(1 + damping)
        norms, matrix, dense = norms / scale, matrix * scale**2, dense / scale
    gone_of = lambda iterate: thinned(np.where(diagonal == 0, -1.0, np.abs(iterate)), level, "layer", 1.0)  # noqa: E731
    start = np.where(gone_of(dense), 0, dense)
    sparse, dual, support, raised = start, np.zeros_like(dense), ~gone_of(dense), False
    iterate = dense
    for t in range(1, iterations + 1):
        iterate = (dense @ matrix - dual + rho * sparse) @ np.linalg.inv(matrix + rho * np.eye(size))
        gone = gone_of(iterate + dual / rho)
        sparse = np.where(gone, 0, iterate + dual / rho)
        dual = dual + rho * (iterate - sparse)
        if t % 3:
            continue
        flipped = (support ^ ~gone).sum() / (~gone).sum()
        support = ~gone
        if flipped > 0.1:
            rho, raised = rho * 1.3, True
        elif flipped > 0.005:
            rho, raised = rho * 1.2, True
        elif flipped and raised:
            rho *= 1.1
        elif flipped:
            rho, sparse, dual = rho / 5, start, np.zeros_like(dense)
            iterate = dense
        elif raised:
            break
        else:
            rho /= 5
        rho = min(rho, 1e6)
        if t >= 30 and flipped < 3e-4:
            break
    kept = ~gone_of(iterate)
    values = np.zeros_like(dense)
    for row, target, mask in zip(values, dense, kept, strict=True):
        row[mask] = np.linalg.solve(matrix[mask][:, mask], matrix[mask] @ target)
    return values / norms


def solved(method, weight, x, level):
    statistic = Hessian()
    statistic.update(x)
    target = Target("{}:{}".format(*level)) if isinstance(level, tuple) else Target(level=level)
    linear = SimpleNamespace(name="layer", weight=weight, present=weight)
    return method.solve(linear, method.prepare(statistic), target).numpy()


def agree(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert np.array_equal(found != 0, expected != 0)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


ADMM_DEFAULTS = {"iterations": 20, "mask_iterations": 15, "damping": 0.1, "rho": 1.0}
ALPS_DEFAULTS = {"iterations": 300, "rho": 0.1, "damping": 0.01, "damping_of": "mean"}


@pytest.mark.parametrize("keys", [{}, {"iterations": 6, "mask_iterations": 4, "rho": 0.3, "damping": 0.02}])
@pytest.mark.parametrize(("level", "scope"), [(0.5, "layer"), (0.83, "layer"), (0.7, "row"), ((2, 4), "layer")])
def test_admm_equals_the_plain_loop(layer, level, scope, keys):
    weight, x = layer()
    double = x.double().numpy()
    expected = plain_admm(weight.double().numpy(), double.T @ double, level, scope, **ADMM_DEFAULTS | keys)
    agree(solved(ADMM(**keys, **({} if scope == "layer" else {"scope": scope})), weight, x, level), expected, 1e-3)


@pytest.mark.parametrize("pattern", [(1, 4), (4, 8), (3, 4), (1, 3), (5, 12)])
def test_admm_thins_every_pattern_as_the_plain_loop_does(layer, pattern):
    weight, x = layer(seed=1)
    double = x.double().numpy()
    expected = plain_admm(weight.double().numpy(), double.T @ double, pattern, "layer", **ADMM_DEFAULTS)
    agree(solved(ADMM(), weight, x, pattern), expected, 1e-3)


@pytest.mark.parametrize("keys", [{}, {"damping_of": "input"}, {"rho": 3.0}, {"damping": 0.1}, {"iterations": 4}])
@pytest.mark.parametrize("level", [0.5, 0.8, (2, 4)])
def test_alps_equals_the_plain_loop(layer, level, keys):
    weight, x = layer(seed=2)
    double = x.double().numpy()
    expected = plain_alps(weight.double().numpy(), double.T @ double / len(x), level, **ALPS_DEFAULTS | keys)
    agree(solved(ALPS(**keys), weight, x, level), expected, 5e-3)


@pytest.mark.parametrize("level", [0.3, (2, 4)])
@pytest.mark.parametrize("method", [ADMM(), ALPS(), ALPS(damping_of="input")], ids=["admm", "mean", "input"])
def test_inputs_that_were_never_active_lose_their_weights_first(layer, method, level):
    weight, x = layer(seed=3)
    x[:, [2, 9, 10]] = 0
    weight[:, [2, 9, 10]] *= 100
    double = x.double().numpy()
    hessian = double.T @ double
    if isinstance(method, ADMM):
        expected = plain_admm(weight.double().numpy(), hessian, level, "layer", **ADMM_DEFAULTS)
    else:
        keys = ALPS_DEFAULTS | {"damping_of": method.damping_of}
        expected = plain_alps(weight.double().numpy(), hessian / len(x), level, **keys)
    found = solved(method, weight, x, level)
    agree(found, expected, 5e-3)
    assert not found[:, [2, 9, 10]].any()


@pytest.mark.parametrize("method", [ADMM(), ADMM(scope="row"), ALPS()], ids=["layer", "row", "alps"])
@pytest.mark.parametrize("level", [0.5, (2, 4)])
def test_a_layer_of_zeros_stays_one(layer, method, level):
    weight, x = layer()
    assert not solved(method, torch.zeros_like(weight), x, level).any()


@pytest.mark.parametrize(
    ("raised", "changed", "decision", "rho"),
    [
        (False, 0.2, "go", 1.3),
        (False, 0.1, "go", 1.2),  # the shares are bounds that must be passed
        (True, 0.005, "go", 1.1),
        (True, 1e-4, "go", 1.1),
        (True, 0.0, "stop", 1.0),
        (False, 0.005, "restart", 0.2),
        (False, 0.0, "go", 0.2),
    ],
)
def test_the_penalty_of_alps_grows_by_the_published_table(raised, changed, decision, rho):
    penalty = _Penalty(1.0, raised)
    assert penalty.adapt(changed) == decision
    assert penalty.rho == pytest.approx(rho)
    assert penalty.raised is (raised or changed > 0.005)
    large = _Penalty(9e5, raised=True)
    large.adapt(0.2)
    assert large.rho == 1e6


@pytest.mark.parametrize(("flips", "iterations"), [(0, 30), (4, 30), (6, 60)])
def test_alps_ends_from_the_thirtieth_iteration_on_where_fewer_than_three_in_ten_thousand_flip(flips, iterations):
    """A support of 20,000 weights; between two looks at it, every third iteration, so many of its places change."""
    shown = []

    def select(scores: torch.Tensor, share: float) -> torch.Tensor:
        assert share == 1.0
        keep = torch.zeros(scores.numel(), dtype=torch.bool)
        keep[:20_000] = True
        if len(shown) // 3 % 2:
            keep[: flips // 2], keep[20_000 : 20_000 + flips // 2] = False, True
        shown.append(keep)
        return keep.view_as(scores)

    scaled = Scaled.of(torch.eye(150), 0.01)
    alps_iterate(torch.ones(150, 150), scaled, select, iterations=60, rho=0.1)
    assert len(shown) == 1 + iterations
