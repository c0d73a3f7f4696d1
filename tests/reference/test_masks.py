"""RIA and DSnoT against plain loops in float64, written from the papers and the authors' code."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.statistics import InputNorm
from prune_lab.pruning.methods.dsnot import DSnoT, InputMoments
from prune_lab.pruning.methods.ria import RIA
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.target import Target


def dropped_lowest(scores: np.ndarray, count: int) -> np.ndarray:
    """Where the ``count`` lowest of a list of scores are."""
    gone = np.zeros(len(scores), dtype=bool)
    gone[np.argsort(scores, kind="stable")[:count]] = True
    return gone


def in_pieces(scores: np.ndarray, size: int, count: int) -> np.ndarray:
    """Where the ``count`` lowest of every ``size`` consecutive scores are, row after row."""
    pieces = [dropped_lowest(piece, count) for piece in scores.reshape(-1, size)]
    return np.concatenate(pieces).reshape(scores.shape)


def target_of(level: float | tuple[int, int]) -> Target:
    return Target("{}:{}".format(*level)) if isinstance(level, tuple) else Target(level=level)


@pytest.mark.parametrize("power", [0.5, 1.0])
@pytest.mark.parametrize(("level", "scope"), [(0.5, "layer"), (0.73, "layer"), (0.73, "row"), ((2, 4), "layer")])
def test_ria_equals_the_plain_loop(layer, level, scope, power):
    weight, x = layer(out=9)
    size, double = np.abs(weight.double().numpy()), x.double().numpy()
    scores = np.zeros_like(size)
    for i in range(size.shape[0]):
        for j in range(size.shape[1]):
            share = size[i, j] / size[:, j].sum() + size[i, j] / size[i, :].sum()
            scores[i, j] = share * np.sqrt((double[:, j] ** 2).sum()) ** power
    if isinstance(level, tuple):
        gone = in_pieces(scores, level[1], level[1] - level[0])
    elif scope == "layer":
        gone = in_pieces(scores, scores.size, int(level * scores.size + 1e-9))
    else:
        gone = in_pieces(scores, scores.shape[1], int(level * scores.shape[1] + 1e-9))
    statistic = InputNorm()
    statistic.update(x)
    pruned = RIA(power, scope).solve(SimpleNamespace(name="layer", weight=weight), statistic, target_of(level))
    assert np.array_equal(pruned.numpy() == 0, gone)


def plain_dsnot(weight, x, seqlen, level, tolerance, max_cycles, power, rule="paper") -> np.ndarray:
    """Which weights are gone: the authors' rules or ours, row by row, on the masks of Wanda.

    Ours: what goes moves the error to zero with N:M, too; a weight may be swapped again; no swap that does not help.
    """
    means, variances, norms = x.mean(0), x.var(0), np.sqrt((x**2).sum(0))
    per_sequence = weight * means * seqlen  # what each weight adds to the outputs of a sequence, on average
    cost = np.abs(weight) * norms
    pattern = isinstance(level, tuple)
    gone = in_pieces(cost, *((level[1], level[1] - level[0]) if pattern else (len(norms), int(level * len(norms)))))
    for contribution, kept_cost, row in zip(per_sequence, cost, gone, strict=True):
        error = contribution[row].sum()
        first, swapped = np.sign(error), set()
        for _ in range(max_cycles):
            if abs(error) <= tolerance:
                break
            sign = np.sign(error)
            size = level[1] if pattern else len(row)
            droppable = [
                j
                for j in np.flatnonzero(~row)
                if j not in swapped and (sign * contribution[j] < 0 or (pattern and rule == "paper"))
            ]
            groups = {j // size for j in droppable}
            worth = {
                j: sign * contribution[j] / variances[j] ** power
                for j in np.flatnonzero(row)
                if j not in swapped and sign * contribution[j] > 0 and (rule == "paper" or j // size in groups)
            }
            if not worth:
                break
            grow = max(worth, key=lambda j: worth[j])
            allowed = [j for j in droppable if j // size == grow // size]
            if not allowed:
                break
            drop = min(allowed, key=lambda j: kept_cost[j])
            after = error - contribution[grow] + contribution[drop]
            if (abs(after) >= abs(error)) if rule == "nearer" else (pattern and np.sign(after) != first):
                break
            row[grow], row[drop] = False, True
            swapped |= {grow, drop} if rule == "paper" else set()
            error = after
    return gone


@pytest.mark.parametrize("keys", [{}, {"power": 0.0}, {"tolerance": 20.0}, {"max_cycles": 2}])
@pytest.mark.parametrize("level", [0.5, 0.75, (2, 4), (4, 8)])
@pytest.mark.parametrize("rule", ["paper", "nearer"])
def test_dsnot_equals_the_plain_loop(layer, rule, level, keys):
    weight, x = layer(out=16, inputs=32, tokens=320)
    target, seqlen = target_of(level), 40
    norms, moments = InputNorm(), InputMoments()
    for statistic in (norms, moments):
        statistic.update(x)
    start = Wanda().solve(SimpleNamespace(name="layer", weight=weight, shape=weight.shape), norms, target)
    method = DSnoT(Wanda(), rule=rule, tolerance_over="sequence", **keys)
    prepared = method.prepare(moments, Calibration(torch.zeros(8, seqlen, dtype=torch.int64)))
    found = method.refine(weight, start, prepared, target).numpy()
    settings = {"tolerance": 0.1, "max_cycles": 50, "power": 1.0} | keys
    expected = plain_dsnot(weight.double().numpy(), x.double().numpy(), seqlen, level, **settings, rule=rule)
    assert np.array_equal(found == 0, expected)
    assert np.array_equal(found != 0, found == weight.numpy())
    assert (found == 0).sum() == (start == 0).sum()
    assert not np.array_equal(found == 0, (start == 0).numpy())
