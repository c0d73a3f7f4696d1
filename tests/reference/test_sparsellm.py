"""SparseLLM's own rounds against steps written plainly in float64, and which round it takes.

Rows are tokens here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from prune_lab.pruning.solvers import obs
from prune_lab.pruning.solvers.auxiliary import solve_through
from prune_lab.pruning.solvers.feed_forward import FeedForward, FeedForwardWeights
from prune_lab.pruning.solvers.least_squares import refit
from prune_lab.pruning.solvers.sparsellm import Outcome, Settings, prune_feed_forward

DAMPING, REFIT_DAMPING, LEVEL = 0.01, 0.001, 0.6
Weights = dict[str, np.ndarray]


def damped(gram: np.ndarray, share: float = DAMPING) -> np.ndarray:
    return gram + share * np.diag(gram).mean() * np.eye(len(gram))


def ridge(x: np.ndarray, goal: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """``argmin |goal - x W^T|^2 + damping |W - prior|^2``."""
    gram = x.T @ x
    return prior + np.linalg.solve(damped(gram), x.T @ (goal - x @ prior.T)).T


@dataclass
class Plain:
    """A network under the rounds; ``x`` and ``y`` are of all tokens, every ``stride``-th has auxiliary activations."""

    dense: Weights
    biases: Weights
    x: np.ndarray
    y: np.ndarray
    stride: int
    terms: tuple[float, float, float]  # alpha, beta, gamma
    prune: Callable[[np.ndarray, np.ndarray], np.ndarray]

    def before(self, x: np.ndarray, weights: Weights) -> tuple[np.ndarray, np.ndarray | None]:
        z = x @ weights["up"].T + self.biases["up"]
        return z, x @ weights["gate"].T + self.biases["gate"] if "gate" in weights else None

    def through(self, z: np.ndarray, s: np.ndarray | None) -> np.ndarray:
        return np.maximum(z, 0) if s is None else s / (1 + np.exp(-s)) * z

    def error(self, weights: Weights, x: np.ndarray, y: np.ndarray) -> float:
        return ((y - self.through(*self.before(x, weights)) @ weights["down"].T) ** 2).sum() / (y**2).sum()

    def run(self, start: Weights, rounds: int, tolerance: float) -> tuple[Weights, list[float]]:
        """The weights of the best round, with a down-projection that is refitted, and the errors."""
        x, y = self.x[:: self.stride], self.y[:: self.stride]
        z, s = self.before(x, self.dense)
        current, made, errors = start, [], [self.error(start, x, y)]
        for _ in range(rounds - 1):
            z, s = self.step(current, z, s, x, y)
            current = {"up": ridge(x, z - self.biases["up"], self.dense["up"])}
            if s is not None:
                current["gate"] = ridge(x, s - self.biases["gate"], self.dense["gate"])
            current = {part: self.prune(weight, damped(self.x.T @ self.x)) for part, weight in current.items()}
            h = self.through(*self.before(self.x, current))
            goal = ridge(h, self.y, self.dense["down"])
            current["down"] = self.prune(goal, damped(h.T @ h))
            errors.append(self.error(current, self.x, self.y))
            made.append((errors[-1], current, goal, h))
            if errors[-1] > (1 - tolerance) * min(errors[:-1]):
                break
        best, weights, goal, h = min(made, key=lambda each: each[0])
        gram, down = damped(h.T @ h, REFIT_DAMPING), np.zeros_like(goal)
        for row, target, kept in zip(down, goal, weights["down"] != 0, strict=True):
            row[kept] = np.linalg.solve(gram[kept][:, kept], gram[kept] @ target)
        weights = weights | {"down": down}
        errors[errors.index(best)] = self.error(weights, self.x, self.y)
        return weights, errors

    def step(
        self, current: Weights, z: np.ndarray, s: np.ndarray | None, x: np.ndarray, y: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Moves p, z and s, in this order."""
        alpha, beta, gamma = self.terms
        down = current["down"]
        normal = beta * down.T @ down + gamma * np.eye(down.shape[1])
        p = np.linalg.solve(normal, (beta * y @ down + gamma * self.through(z, s)).T).T
        m, m_gate = self.before(x, current)
        if s is None:
            positive, negative = np.maximum(0, (gamma * p + alpha * m) / (gamma + alpha)), np.minimum(0, m)
            costs = [alpha * (z - m) ** 2 + gamma * (p - np.maximum(0, z)) ** 2 for z in (positive, negative)]
            return np.where(costs[0] <= costs[1], positive, negative), None
        gate = s / (1 + np.exp(-s))
        z = (alpha * m + gamma * gate * p) / (alpha + gamma * gate**2)
        given = [torch.from_numpy(each) for each in (m_gate, p, z, s)]  # a search, which has tests of its own
        return z, solve_through(torch.nn.functional.silu, *given, alpha, gamma).numpy()


def network(layer, gated: bool, tokens: int = 600) -> FeedForward:
    """Width 12, hidden width 20, output width 9, with biases."""
    up, x = layer(out=20, inputs=12, tokens=tokens)
    down, gate = layer(out=9, inputs=20, seed=1)[0] / 4, layer(out=20, inputs=12, seed=2)[0] / 3
    biases = layer(out=2, inputs=20, seed=3)[0] / 2
    dense = FeedForwardWeights(up / 3, down, gate if gated else None)
    activation = torch.nn.functional.silu if gated else torch.nn.functional.relu
    case = FeedForward(dense, biases[0], biases[1] if gated else None, activation, x / x.std(0), x[:, :0], 128)
    return case.with_outputs()


def prune(_part: str, weight: Tensor, factor: obs.Factor) -> Tensor:
    return obs.sparsegpt(weight, factor, LEVEL)


def refit_on(goal: Tensor, keep: Tensor, gram: Tensor) -> Tensor:
    return refit(goal, keep, gram, damping=REFIT_DAMPING)


def as_arrays(weights: FeedForwardWeights) -> Weights:
    found = {part: getattr(weights, part) for part in ("up", "gate", "down")}
    return {part: weight.double().numpy() for part, weight in found.items() if weight is not None}


@pytest.mark.parametrize(
    ("rounds", "tolerance", "per_input", "terms"),
    [
        (4, -1.0, None, (1.0, 1.0, 1.0)),  # all rounds are made
        (4, -1.0, 25, (0.5, 2.0, 1.0)),  # auxiliary activations of every other token
        (6, 0.15, None, (1.0, 1.0, 1.0)),  # ends early
    ],
)
@pytest.mark.parametrize("gated", [False, True])
def test_the_rounds_equal_the_plain_steps(layer, plain_sparsegpt, gated, rounds, tolerance, per_input, terms):
    case = network(layer, gated)
    biases = {"up": case.up_bias, "gate": case.gate_bias}

    def plain_prune(weight: np.ndarray, hessian: np.ndarray) -> np.ndarray:
        return plain_sparsegpt(weight, hessian, np.zeros(len(hessian), dtype=bool), LEVEL, None, 128)[0]

    plain = Plain(
        as_arrays(case.dense),
        {part: bias.double().numpy() for part, bias in biases.items() if bias is not None},
        case.inputs.double().numpy(),
        case.outputs.double().numpy(),
        1 if per_input is None else len(case.inputs) // (12 * per_input),
        terms,
        plain_prune,
    )
    start = FeedForwardWeights(
        **{
            part: None if weight is None else weight * (weight.abs() > weight.abs().quantile(0.7))
            for part, weight in vars(case.dense).items()
        }
    )
    settings = Settings(*terms, rounds, DAMPING, tolerance, per_input)
    found = prune_feed_forward(case, start, prune, refit_on, settings)
    weights, errors = plain.run(as_arrays(start), rounds, tolerance)
    assert found.errors == pytest.approx(errors, rel=2e-3)
    assert len(errors) == rounds if tolerance < 0 else 2 < len(errors) < rounds
    for part, weight in as_arrays(found.weights).items():
        assert np.array_equal(weight != 0, weights[part] != 0), part
        np.testing.assert_allclose(weight, weights[part], rtol=2e-3, atol=2e-4, err_msg=part)


def lacking(case: FeedForward, share: float) -> FeedForwardWeights:
    """The dense weights but for a share of the down-projection, whose error is the square of that."""
    return FeedForwardWeights(case.dense.up, (1 - share) * case.dense.down)


def scripted(case: FeedForward, start: FeedForwardWeights, lacks: list[float], settings: Settings) -> Outcome:
    """Rounds in which the pruned down-projection lacks so much; the last of ``lacks`` is what the refit leaves."""
    rest = iter(lacks)

    def prune(part: str, _weight: Tensor, _factor: obs.Factor) -> Tensor:
        return case.dense.up if part == "up" else lacking(case, next(rest)).down

    return prune_feed_forward(case, start, prune, lambda *_: lacking(case, lacks[-1]).down, settings)


@pytest.mark.parametrize("per_input", [None, 25])
@pytest.mark.parametrize(
    ("lacks", "tolerance", "errors"),
    [
        ([0.5, 0.4, 0.3, 0.2, 0.1, 0.01], 0.1, [0.5, 0.4, 0.3, 0.2, 0.01]),  # all rounds, the last is refitted
        ([0.5, 0.4, 0.3, 0.29, 0.1, 0.01], 0.1, [0.5, 0.4, 0.3, 0.01]),  # 0.29^2 > 0.9 * 0.3^2
        ([0.5, 0.3, 0.4, 0.1, 0.1, 0.01], 0.1, [0.5, 0.01, 0.4]),  # what rises ends it, the best is taken
        ([0.5, 0.3, 0.31, 0.29, 0.3, 0.01], -0.5, [0.5, 0.3, 0.31, 0.01, 0.3]),
        ([0.5, 0.3, 0.33, 0.31, 0.1, 0.01], -0.1, [0.5, 0.01, 0.33]),  # too little beside the best, not the last
        ([0.5, 0.4, 0.4, 0.4, 0.4, 0.01], 0.0, [0.5, 0.01, 0.4, 0.4, 0.4]),  # as good is good enough to go on
        ([0.3, 0.4, 0.2, 0.1, 0.1, 0.01], 0.1, [0.3, 0.4]),  # worse than the start, which stays
    ],
)
def test_the_best_round_is_taken_and_one_that_gains_too_little_is_the_last(layer, lacks, tolerance, errors, per_input):
    case = network(layer, gated=False)
    settings = Settings(1.0, 1.0, 1.0, 5, DAMPING, tolerance, per_input)
    found = scripted(case, lacking(case, lacks[0]), lacks[1:], settings)
    assert found.errors == pytest.approx([each**2 for each in errors], rel=1e-3)
    torch.testing.assert_close(found.weights.down, lacking(case, min(errors)).down)


@pytest.mark.parametrize(("share", "of_all"), [(0.5, False), (0.95, True)])
def test_the_error_of_the_start_is_that_of_all_tokens_where_it_decides(layer, share, of_all):
    case = network(layer, gated=False)
    start = FeedForwardWeights(torch.zeros_like(case.dense.up), case.dense.down)
    on_sample, on_all = case.sample(12 * 25).error(start), case.error(start)
    assert abs(on_sample - on_all) > 1e-3
    found = scripted(case, start, [(share * on_sample) ** 0.5, 0.01], Settings(1.0, 1.0, 1.0, 2, DAMPING, 0.01, 25))
    assert found.errors[0] == (on_all if of_all else on_sample)
