"""The steps of SparseLLM as its authors' code takes them, in float32: what `sparsellm` is compared with.

All activations are on the device at once: ``tokens * (2 in + 2 out + 4 hidden)`` floats.

Source: the repository BaiTheBest/SparseLLM for Bai et al., 2024, arXiv:2402.17946. Left out: half precision, and the
list of three block numbers that get a single round.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from prune_lab.pruning.solvers.auxiliary import solve_z_relu
from prune_lab.pruning.solvers.feed_forward import FeedForward, FeedForwardWeights
from prune_lab.pruning.solvers.obs import Factor, factorize
from prune_lab.pruning.solvers.sparsellm import Prune, Settings

_LEARNING_RATE = 0.01
_DOWN_STEPS = 10
_S_PASSES = 2
_S_MINIBATCH = 1000


def prune_feed_forward_as_published(network: FeedForward, prune: Prune, settings: Settings) -> FeedForwardWeights:
    """All rounds, from the dense weights; the weights of the last one.

    Raises:
        NotPositiveDefinite: a Hessian has no factor.
    """
    everything = slice(0, len(network.inputs))
    x, y = network.x(everything), network.y(everything)
    weights = network.dense
    z, s = network.before_activation(x, weights)
    p = network.through(z, s)
    pseudo_inverse = torch.linalg.pinv(x)  # (in, tokens)
    hessian = x.T @ x
    for number in range(settings.rounds):
        if number:
            weights = _refitted(network, weights, pseudo_inverse, z, s, p, y)
        up_factor = _damped_in_place(hessian, settings.damping)
        up = prune("up", weights.up, up_factor)
        gate = None if weights.gate is None else prune("gate", weights.gate, up_factor)
        down = prune("down", weights.down, factorize(p.T @ p, settings.damping, in_place=True))
        weights = FeedForwardWeights(up, down, gate)
        p = _solve_p(down, y, network.through(z, s), settings)
        z, s = _solve_z_s(network, x, weights, p, z, s, settings)
    return weights


def _damped_in_place(hessian: Tensor, damping: float) -> Factor:
    """The factor of the damped Hessian; the damping stays in it, so that every call adds more."""
    factor = factorize(hessian, damping)
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    return factor


def _refitted(
    network: FeedForward,
    weights: FeedForwardWeights,
    pseudo_inverse: Tensor,
    z: Tensor,
    s: Tensor | None,
    p: Tensor,
    y: Tensor,
) -> FeedForwardWeights:
    shifted = z if network.up_bias is None else z - network.up_bias
    up = (pseudo_inverse @ shifted).T
    if s is None:
        return replace(weights, up=up, down=_descend_down(weights.down, p, y))
    shifted = s if network.gate_bias is None else s - network.gate_bias
    return FeedForwardWeights(up, (torch.linalg.pinv(p) @ y).T, (pseudo_inverse @ shifted).T)


def _descend_down(down: Tensor, p: Tensor, y: Tensor) -> Tensor:
    for _ in range(_DOWN_STEPS):
        gradient = 2 * (p @ down.T - y).T @ p / y.numel()
        down = down - _LEARNING_RATE * gradient
    return down


def _solve_p(down: Tensor, y: Tensor, h: Tensor, settings: Settings) -> Tensor:
    quadratic = settings.beta * down.T @ down
    quadratic.diagonal().add_(settings.gamma)
    inverse: Tensor = torch.linalg.inv(quadratic)
    return (settings.beta * y @ down + settings.gamma * h) @ inverse


def _solve_z_s(
    network: FeedForward,
    x: Tensor,
    weights: FeedForwardWeights,
    p: Tensor,
    z: Tensor,
    s: Tensor | None,
    settings: Settings,
) -> tuple[Tensor, Tensor | None]:
    m, m_gate = network.before_activation(x, weights)
    if s is None or m_gate is None:
        return solve_z_relu(m, p, settings.alpha, settings.gamma), None
    open_gate = network.activation(s)
    z = (m + open_gate * p) / (open_gate.square() + 1)
    s = s.clone()
    for _ in range(_S_PASSES):
        for part in torch.arange(len(s), device=s.device).split(_S_MINIBATCH):
            s[part] -= _LEARNING_RATE * _s_gradient(network, s[part], m_gate[part], p[part], z[part], settings)
    return z, s


def _s_gradient(network: FeedForward, s: Tensor, m: Tensor, p: Tensor, z: Tensor, settings: Settings) -> Tensor:
    with torch.enable_grad():
        leaf = s.requires_grad_()
        loss = settings.alpha * functional.mse_loss(leaf, m, reduction="sum")
        loss = loss + settings.gamma * functional.mse_loss(network.activation(leaf) * z, p, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient
