"""`variant=paper` of SparseLLM against the steps of the authors' code, written plainly in float64.

Columns are tokens here, as in the paper: ``x (in, tokens)``.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from prune_lab.pruning.solvers import obs
from prune_lab.pruning.solvers.feed_forward import FeedForward, FeedForwardWeights
from prune_lab.pruning.solvers.sparsellm import Settings
from prune_lab.pruning.solvers.sparsellm_paper import prune_feed_forward_as_published

DAMPING = 0.01


@dataclass
class Plain:
    """One network under the authors' algorithm; ``prune`` is SparseGPT on a weight and a Hessian that is damped."""

    x: np.ndarray
    up: np.ndarray
    down: np.ndarray
    gate: np.ndarray | None
    up_bias: np.ndarray  # (hidden, 1), as the other
    gate_bias: np.ndarray
    weights: tuple[float, float, float]  # alpha, beta, gamma
    prune: object

    def run(self, rounds: int) -> dict[str, np.ndarray]:
        """Alternates; the first round prunes the dense weights."""
        pinv, hessian = np.linalg.pinv(self.x), self.x @ self.x.T
        z = self.up @ self.x + self.up_bias
        s = None if self.gate is None else self.gate @ self.x + self.gate_bias
        p = relu(z) if s is None else silu(s) * z
        y = self.down @ p
        for k in range(rounds):
            if k:
                self.up = (z - self.up_bias) @ pinv
                if s is None:
                    self.descend_down(p, y)
                else:
                    self.gate = (s - self.gate_bias) @ pinv
                    self.down = y @ np.linalg.pinv(p)
            hessian = damped(hessian)  # what was added before stays in
            self.up = self.prune(self.up, hessian)
            self.gate = None if self.gate is None else self.prune(self.gate, hessian)
            self.down = self.prune(self.down, damped(p @ p.T))
            p = self.least_p(relu(z) if s is None else silu(s) * z, y)
            m = self.up @ self.x + self.up_bias
            if s is None:
                z = self.least_z(m, p)
            else:
                z = (m + silu(s) * p) / (silu(s) ** 2 + 1)
                s = self.descended_s(s, self.gate @ self.x + self.gate_bias, p, z)
        found = {"up": self.up, "down": self.down}
        return found if self.gate is None else found | {"gate": self.gate}

    def descend_down(self, p: np.ndarray, y: np.ndarray) -> None:
        """Ten gradient steps of 0.01 on the mean of ``(down p - y)^2``."""
        for _ in range(10):
            self.down = self.down - 0.01 * 2 / y.size * (self.down @ p - y) @ p.T

    def least_p(self, h: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The minimiser of ``beta |y - down p|^2 + gamma |p - h|^2``, by its normal equations."""
        _, beta, gamma = self.weights
        normal = beta * self.down.T @ self.down + gamma * np.eye(self.down.shape[1])
        return np.linalg.solve(normal, beta * self.down.T @ y + gamma * h)

    def least_z(self, m: np.ndarray, p: np.ndarray) -> np.ndarray:
        """The better of the best z that is positive and the best that is not, element by element."""
        alpha, _, gamma = self.weights
        z = np.empty_like(m)
        for at in np.ndindex(*m.shape):
            pieces = [max(0.0, (gamma * p[at] + alpha * m[at]) / (gamma + alpha)), min(0.0, m[at])]
            z[at] = min(pieces, key=lambda each: alpha * (each - m[at]) ** 2 + gamma * (p[at] - max(0.0, each)) ** 2)
        return z

    def descended_s(self, s: np.ndarray, m: np.ndarray, p: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Two gradient steps of 0.01 on ``alpha |s - m|^2 + gamma |p - silu(s) z|^2``."""
        alpha, _, gamma = self.weights
        for _ in range(2):
            sigmoid = 1 / (1 + np.exp(-s))
            slope = sigmoid * (1 + s * (1 - sigmoid))
            s = s - 0.01 * (2 * alpha * (s - m) - 2 * gamma * (p - silu(s) * z) * slope * z)
        return s


def relu(z: np.ndarray) -> np.ndarray:
    return np.maximum(z, 0)


def silu(s: np.ndarray) -> np.ndarray:
    return s / (1 + np.exp(-s))


def damped(hessian: np.ndarray) -> np.ndarray:
    return hessian + DAMPING * np.diag(hessian).mean() * np.eye(len(hessian))


def network(layer, gated: bool, tokens: int) -> FeedForward:
    """Width 12, hidden width 20, output width 12, with biases."""
    up, x = layer(out=20, inputs=12, tokens=tokens)
    x = x / x.std(0)
    down, gate = layer(out=12, inputs=20, seed=1)[0] / 4, layer(out=20, inputs=12, seed=2)[0] / 3
    biases = layer(out=2, inputs=20, seed=3)[0]
    dense = FeedForwardWeights(up / 3, down, gate if gated else None)
    activation = torch.nn.functional.silu if gated else torch.nn.functional.relu
    return FeedForward(dense, biases[0], biases[1] if gated else None, activation, x, x[:, :0], 64)


@pytest.mark.parametrize(("alpha", "beta", "gamma"), [(None, None, None), (0.4, 3.0, 1.5)])
@pytest.mark.parametrize("rounds", [2, 4])
@pytest.mark.parametrize("level", [0.5, 0.75])
@pytest.mark.parametrize("gated", [False, True])
def test_the_paper_variant_equals_the_plain_steps(layer, plain_sparsegpt, gated, level, rounds, alpha, beta, gamma):
    case = network(layer, gated, tokens=240)
    own = 5.0 if gated else 0.1
    terms = (alpha or own, beta or own, gamma or own)

    def prune(_part: str, weight: Tensor, factor: obs.Factor) -> Tensor:
        return obs.sparsegpt(weight, factor, level)

    found = prune_feed_forward_as_published(case.with_outputs(), prune, Settings(*terms, rounds, DAMPING))

    def plain_prune(weight: np.ndarray, hessian: np.ndarray) -> np.ndarray:
        return plain_sparsegpt(weight, hessian, np.zeros(len(hessian), dtype=bool), level, None, 128)[0]

    double = {name: getattr(case.dense, name) for name in ("up", "down", "gate")}
    arrays = {name: None if each is None else each.double().numpy() for name, each in double.items()}
    columns = [torch.zeros(20) if each is None else each for each in (case.up_bias, case.gate_bias)]
    up_bias, gate_bias = (each.double().numpy()[:, None] for each in columns)
    plain = Plain(
        case.inputs.double().numpy().T, **arrays, up_bias=up_bias, gate_bias=gate_bias, weights=terms, prune=plain_prune
    )
    for name, expected in plain.run(rounds).items():
        weight = getattr(found, name).numpy()
        assert np.array_equal(weight != 0, expected != 0), name
        np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=2e-5, err_msg=name)
