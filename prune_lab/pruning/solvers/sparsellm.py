"""SparseLLM: prunes the weights of a feed-forward network together, through auxiliary activations.

Source: Bai et al., 2024, arXiv:2402.17946.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from prune_lab.pruning.solvers.auxiliary import PStep, solve_through, solve_z_gated, solve_z_relu
from prune_lab.pruning.solvers.feed_forward import FeedForward, FeedForwardWeights, HiddenMoments
from prune_lab.pruning.solvers.obs import Factor, factorize
from prune_lab.utils.device import has_room_for

Prune = Callable[[str, Tensor, Factor], Tensor]
"""Prunes the weight ``up``, ``gate`` or ``down``, ``(out, in)``, from the factor of its inputs' Hessian."""

Refit = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The values on a support ``(out, in)`` bool that come closest to a target ``(out, in)`` in a Hessian ``(in, in)``."""


@dataclass(frozen=True)
class Settings:
    """The weights of the objective's terms, and how long to work.

    ``alpha``, ``beta`` and ``gamma`` matter by their ratios only. ``rounds`` counts the first one, which is SparseGPT;
    a round that lowers the output error by less than ``tolerance`` of it is the last. There are auxiliary activations
    for about ``tokens_per_input`` tokens for every input of the network, evenly spaced, or for all; what is pruned
    away and how good a round is depends on all tokens in any case.
    """

    alpha: float
    beta: float
    gamma: float
    rounds: int
    damping: float
    tolerance: float = 0.01
    tokens_per_input: int | None = None


_CLOSE = 0.9  # a sample's error is off by a few percent


@dataclass(frozen=True)
class Outcome:
    """The best weights, and the relative output error after every round that was made.

    The first of the errors is that of the sample where a later one is far below it, and nothing is held out.
    """

    weights: FeedForwardWeights
    errors: tuple[float, ...]
    network: FeedForward  # with its outputs
    sample: FeedForward  # the tokens that had auxiliary activations

    @property
    def further_rounds(self) -> int:
        """Which round the weights are of; 0 for the first, SparseGPT."""
        return self.errors.index(min(self.errors))


def prune_feed_forward(
    network: FeedForward,
    start: FeedForwardWeights,
    prune: Prune,
    refit: Refit,
    settings: Settings,
    judge: FeedForward | None = None,
) -> Outcome:
    """Alternates between the auxiliary activations and the weights.

    A round moves p, z and s to their minimisers (`auxiliary`), fits the up- and gate-projections to z and s by least
    squares, prunes those, fits the down-projection to the dense outputs by least squares *on what the pruned
    projections really give it*, and prunes that. Of all rounds, the first included, the one with the least output error
    is returned, with the values of its down-projection refitted; a round that gains less than ``settings.tolerance``
    is the last.

    A few tokens for each input determine the regression of the up- and gate-projections; all others are made on all.

    Args:
        network: its outputs are set here.
        start: the weights of the first round, pruned.
        prune: must set the same number of weights to zero every time.
        refit: makes the values on a support optimal.
        settings: see there.
        judge: the network, with its outputs, on the tokens whose output error decides; by default as ``network``.

    Memory on the device, in floats: ``2 hidden^2 + 4 in^2 + (out + 4 hidden) * chunk`` and the weights four times. On
    the host, or on the device where there is room: ``tokens * (in + out)`` in the type of the model, and for z, and for
    s, ``hidden`` floats for each token that has them.

    Differs from the authors' code: see `SparseLLM`.
    """
    network = network.with_outputs()
    few = settings.tokens_per_input
    sample = network.sample(None if few is None else few * network.inputs.shape[1])
    if settings.rounds == 1:
        return Outcome(start, ((judge or network).error(start),), network, sample)
    states = _States.of(sample, settings.damping)
    factor = states.factor if sample is network else factorize(network.gram(), settings.damping)
    current, best = start, None
    errors = [(judge or sample).error(start)]  # of a sample: where it decides, it is made good for all tokens below
    for _ in range(settings.rounds - 1):
        up, gate = states.advance(sample, current, settings)
        up = prune("up", up, factor)
        gate = None if gate is None else prune("gate", gate, factor)
        made = _Round.of(network, up, gate, prune, settings.damping, judge)
        current = made.weights
        errors.append(made.error)
        if best is None or made.error <= best.error:
            best = made
        if made.error > (1 - settings.tolerance) * min(errors[:-1]):
            break
    assert best is not None  # there was a round
    if judge is None and sample is not network and best.error > _CLOSE * errors[0]:
        errors[0] = network.error(start)
    if best.error >= errors[0]:
        return Outcome(start, tuple(errors), network, sample)
    weights, error = best.refitted(refit, judge)
    errors[errors.index(best.error)] = error
    return Outcome(weights, tuple(errors), network, sample)


@dataclass(frozen=True)
class _Round:
    """What a round made of the network."""

    weights: FeedForwardWeights
    moments: HiddenMoments  # of what its pruned projections give
    target: Tensor  # (out, hidden): the down-projection before it was pruned
    error: float  # relative, of the outputs on all tokens, or on those that judge

    @classmethod
    def of(
        cls,
        network: FeedForward,
        up: Tensor,
        gate: Tensor | None,
        prune: Prune,
        damping: float,
        judge: FeedForward | None,
    ) -> "_Round":
        """Fits the down-projection to the dense outputs, on what ``up`` and ``gate`` give it, and prunes it."""
        moments = network.moments(replace(network.dense, up=up, gate=gate))
        factor = factorize(moments.hidden, damping)
        target = regress(moments.cross, moments.hidden, factor, network.dense.down)
        weights = FeedForwardWeights(up, prune("down", target, factor), gate)
        error = moments.error(weights.down) if judge is None else judge.error(weights)
        return cls(weights, moments, target, error)

    def refitted(self, refit: Refit, judge: FeedForward | None) -> tuple[FeedForwardWeights, float]:
        """The weights with the best values on the down-projection's support, and their relative error.

        Where these are worse on the tokens that judge, the weights are as they were.
        """
        weights = replace(self.weights, down=refit(self.target, self.weights.down != 0, self.moments.hidden))
        error = self.moments.error(weights.down) if judge is None else judge.error(weights)
        return (weights, error) if judge is None or error < self.error else (self.weights, self.error)


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
    solution: Tensor = torch.linalg.solve_triangular(upper.T, change, upper=False).T
    return prior + solution


@dataclass(frozen=True)
class _States:
    """The auxiliary variables that live from round to round, ``(tokens, hidden)`` float32.

    They are on the host, or on the device where there is room: copying them takes as long as a round. Beside them is
    what the regressions on them share: ``sum x x^T`` of their tokens, ``(in, in)``, and its factor.
    """

    z: Tensor
    s: Tensor | None
    gram: Tensor
    factor: Factor

    @classmethod
    def of(cls, network: FeedForward, damping: float) -> "_States":
        """Those of the dense network."""
        dense, gram = network.dense, network.gram()
        shape, gated = (len(network.inputs), len(dense.up)), dense.gate is not None
        there = has_room_for(dense.up.device, (4 + 4 * gated) * math.prod(shape))
        place = dense.up.device if there else torch.device("cpu")
        s = torch.empty(shape, device=place) if gated else None
        states = cls(torch.empty(shape, device=place), s, gram, factorize(gram, damping))
        for rows in network.chunks():
            states.put(rows, *network.before_activation(network.x(rows), dense))
        return states

    def put(self, rows: slice, z: Tensor, s: Tensor | None) -> None:
        self.z[rows] = z
        if self.s is not None and s is not None:
            self.s[rows] = s

    def advance(
        self, network: FeedForward, weights: FeedForwardWeights, settings: Settings
    ) -> tuple[Tensor, Tensor | None]:
        """One p-, z- and s-step for every token.

        Returns:
            The up-projection fitted to z and, with a gate, the gate-projection fitted to s, ``(hidden, in)`` each.
        """
        device, dense = network.dense.up.device, network.dense
        p_step = PStep(weights.down, settings.beta, settings.gamma)
        up_cross = torch.zeros_like(dense.up)
        gate_cross = None if dense.gate is None else torch.zeros_like(dense.gate)
        for rows in network.chunks():
            x = network.x(rows)
            z, s = self.z[rows].to(device), None if self.s is None else self.s[rows].to(device)
            p = p_step(network.through(z, s), network.y(rows))
            given = network.before_activation(x, weights)
            z, s = minimize_before_activation(network, given, p, z, s, settings)
            self.put(rows, z, s)
            up_cross.addmm_((z if network.up_bias is None else z - network.up_bias).T, x)
            if gate_cross is not None and s is not None:
                gate_cross.addmm_((s if network.gate_bias is None else s - network.gate_bias).T, x)
        up = regress(up_cross, self.gram, self.factor, dense.up)
        if gate_cross is None or dense.gate is None:
            return up, None
        return up, regress(gate_cross, self.gram, self.factor, dense.gate)


def minimize_before_activation(
    network: FeedForward,
    given: tuple[Tensor, Tensor | None],
    p: Tensor,
    z: Tensor,
    s: Tensor | None,
    settings: Settings,
) -> tuple[Tensor, Tensor | None]:
    """The z-step and, with a gate, the s-step after it, ``(tokens, hidden)`` each; ``given``: what the weights give."""
    alpha, gamma = settings.alpha, settings.gamma
    m, m_gate = given
    if s is None or m_gate is None:
        if network.activation is functional.relu:
            return solve_z_relu(m, p, alpha, gamma), None
        return solve_through(network.activation, m, p, 1.0, z, alpha, gamma), None
    z = solve_z_gated(m, p, network.activation(s), alpha, gamma)
    return z, solve_through(network.activation, m_gate, p, z, s, alpha, gamma)
