"""SparseLLM: prunes the weights of a feed-forward network together, through auxiliary activations.

Source: Bai et al., 2024, arXiv:2402.17946.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from prune_lab.solvers.auxiliary import PStep, solve_through, solve_z_gated, solve_z_relu
from prune_lab.solvers.feed_forward import FeedForward, Weights
from prune_lab.solvers.obs import Factor, factorize

Prune = Callable[[str, Tensor, Factor], Tensor]
"""Prunes the weight ``up``, ``gate`` or ``down``, ``(out, in)``, from the factor of its inputs' Hessian."""

Refit = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The values on a support ``(out, in)`` bool that come closest to a target ``(out, in)`` in a Hessian ``(in, in)``."""


@dataclass(frozen=True)
class Settings:
    """The weights of the objective's terms, and how long to work.

    ``alpha``, ``beta`` and ``gamma`` matter by their ratios only. ``rounds`` counts the first one, which is SparseGPT.
    """

    alpha: float
    beta: float
    gamma: float
    rounds: int
    damping: float


@dataclass(frozen=True)
class Outcome:
    """The best weights, and the relative output error after every round."""

    weights: Weights
    errors: tuple[float, ...]


def prune_jointly(network: FeedForward, start: Weights, prune: Prune, refit: Refit, settings: Settings) -> Outcome:
    """Alternates between the auxiliary activations and the weights.

    A round moves p, z and s to their minimisers (`auxiliary`), fits the up- and gate-projections to z and s by least
    squares, prunes those, fits the down-projection to the dense outputs by least squares *on what the pruned
    projections really give it*, and prunes that; the values that stay are then refitted exactly. Of all rounds, the
    first included, the one with the least output error is returned.

    Args:
        network: with its outputs.
        start: the weights of the first round, pruned.
        prune: must set the same number of weights to zero every time.
        refit: makes the values on a support optimal.
        settings: see there.

    Memory on the device, in floats: ``hidden^2 + 2 in^2 + (out + 4 hidden) * chunk`` and the weights three times. On
    the host: ``tokens * (in + out)`` in the type of the model, ``tokens * hidden`` floats for z and as many for s.

    Differs from the authors' code: see `SparseLLM`.
    """
    current = best = start
    gram = network.gram()
    factor = factorize(gram, settings.damping)
    states = _States.of(network)
    moments = network.moments(start)
    errors = [moments.error(start.down)]
    for _ in range(settings.rounds - 1):
        up_cross, gate_cross = states.advance(network, current, settings)
        up = prune("up", regress(up_cross, gram, factor, network.dense.up), factor)
        gate = None
        if gate_cross is not None:
            assert network.dense.gate is not None
            gate = prune("gate", regress(gate_cross, gram, factor, network.dense.gate), factor)
        moments = network.moments(replace(network.dense, up=up, gate=gate))
        hidden_factor = factorize(moments.hidden, settings.damping)
        target = regress(moments.cross, moments.hidden, hidden_factor, network.dense.down)
        down = prune("down", target, hidden_factor)
        down = refit(target, down != 0, moments.hidden)
        current = Weights(up, down, gate)
        errors.append(moments.error(down))
        if errors[-1] < min(errors[:-1]):
            best = current
    return Outcome(best, tuple(errors))


def regress(cross: Tensor, gram: Tensor, factor: Factor, prior: Tensor) -> Tensor:
    """``argmin |t - W x|^2 + damping |W - prior|^2`` from ``cross = sum t x^T`` and ``gram = sum x x^T``.

    The damping is that of the factor of ``gram``; drawing towards the dense weights instead of zero, it leaves them as
    they are where the targets are their own outputs.

    Args:
        cross: ``(out, in)`` float32.
        gram: ``(in, in)`` float32, symmetric.
        factor: of ``gram``, from `factorize`.
        prior: ``(out, in)`` float32.
    """
    upper = factor.upper  # gram + damping = R R^T
    change = torch.linalg.solve_triangular(upper, (cross - prior @ gram).T, upper=True)
    return prior + torch.linalg.solve_triangular(upper.T, change, upper=False).T


@dataclass(frozen=True)
class _States:
    """The auxiliary variables that live from round to round, ``(tokens, hidden)`` float32 on the host."""

    z: Tensor
    s: Tensor | None

    @classmethod
    def of(cls, network: FeedForward) -> "_States":
        """Those of the dense network."""
        shape = (len(network.inputs), len(network.dense.up))
        states = cls(torch.empty(shape), None if network.dense.gate is None else torch.empty(shape))
        for rows in network.chunks():
            states.put(rows, *network.before_activation(network.x(rows), network.dense))
        return states

    def put(self, rows: slice, z: Tensor, s: Tensor | None) -> None:
        self.z[rows] = z
        if self.s is not None and s is not None:
            self.s[rows] = s

    def advance(self, network: FeedForward, weights: Weights, settings: Settings) -> tuple[Tensor, Tensor | None]:
        """One p-, z- and s-step for every token.

        Returns:
            ``sum (z - b) x^T`` and, with a gate, ``sum (s - c) x^T``, ``(hidden, in)`` each.
        """
        device = network.dense.up.device
        p_step = PStep(weights.down, settings.beta, settings.gamma)
        up_cross = torch.zeros_like(weights.up)
        gate_cross = None if weights.gate is None else torch.zeros_like(weights.gate)
        for rows in network.chunks():
            x = network.x(rows)
            z, s = self.z[rows].to(device), None if self.s is None else self.s[rows].to(device)
            p = p_step(network.through(z, s), network.y(rows))
            z, s = minimize_before_activation(network, x, p, z, s, weights, settings)
            self.put(rows, z, s)
            up_cross.addmm_((z if network.up_bias is None else z - network.up_bias).T, x)
            if gate_cross is not None and s is not None:
                gate_cross.addmm_((s if network.gate_bias is None else s - network.gate_bias).T, x)
        return up_cross, gate_cross


def minimize_before_activation(
    network: FeedForward, x: Tensor, p: Tensor, z: Tensor, s: Tensor | None, weights: Weights, settings: Settings
) -> tuple[Tensor, Tensor | None]:
    """The z-step and, with a gate, the s-step after it, ``(tokens, hidden)`` each."""
    alpha, gamma = settings.alpha, settings.gamma
    m, m_gate = network.before_activation(x, weights)
    if s is None or m_gate is None:
        if network.activation is functional.relu:
            return solve_z_relu(m, p, alpha, gamma), None
        return solve_through(network.activation, m, p, 1.0, z, alpha, gamma), None
    z = solve_z_gated(m, p, network.activation(s), alpha, gamma)
    return z, solve_through(network.activation, m_gate, p, z, s, alpha, gamma)
