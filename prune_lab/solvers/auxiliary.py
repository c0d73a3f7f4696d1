"""The p-, z- and s-steps of SparseLLM: exact minimisers of its objective in one auxiliary variable at a time.

For a feed-forward network with inputs x, dense outputs y (without the last bias) and activation ``phi`` the objective
is

    F = beta |y - W_down p|^2 + gamma |p - h|^2 + alpha |z - W_up x|^2 (+ alpha |s - W_gate x|^2)

with ``h = phi(z)``, or ``h = phi(s) z`` with a gate. Everything is float32, ``(tokens, ...)``, and per token.

Source: SparseLLM (Bai et al., 2024, arXiv:2402.17946), sections 3.3 and 3.4.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from prune_lab.errors import NotPositiveDefinite

Activation = Callable[[Tensor], Tensor]

_STEPS = 3  # of the one-dimensional search; from its start, two come within 1e-6 of the minimum as a rule
_AT_ONCE = 1 << 15  # elements are independent: a few at a time stay in the cache, with all that is computed of them


class PStep:
    """``p = argmin beta |y - W p|^2 + gamma |p - h|^2``, for one ``W`` and many tokens.

    The closed form ``(beta W^T W + gamma I)^-1 (beta W^T y + gamma h)`` needs the inverse of a matrix of the hidden
    width. By the Woodbury identity it equals ``h + W^T (W W^T + gamma/beta I)^-1 (y - W h)``, which needs a
    factorisation of the output width only, four times smaller each way.

    Args:
        down: ``(out, hidden)`` float32.
        beta: weight of the output's error, above 0.
        gamma: weight of the distance from ``h``, above 0.

    Raises:
        NotPositiveDefinite: ``W`` is not finite, or gamma is too small beside ``beta W W^T``.
    """

    def __init__(self, down: Tensor, beta: float, gamma: float):
        gram = down @ down.T
        gram.diagonal().add_(gamma / beta)
        factor, info = torch.linalg.cholesky_ex(gram)
        if int(info) or not bool(torch.isfinite(factor.diagonal()).all()):
            raise NotPositiveDefinite("the p-step has no solution; raise method.gamma or lower method.beta")
        self._down = down
        self._pull = torch.cholesky_solve(down, factor)  # (W W^T + gamma/beta I)^-1 W, (out, hidden)

    def __call__(self, h: Tensor, y: Tensor) -> Tensor:
        """``p`` ``(tokens, hidden)`` for ``h`` ``(tokens, hidden)`` and ``y`` ``(tokens, out)``."""
        return torch.addmm(h, y - h @ self._down.T, self._pull)


def solve_z_relu(m: Tensor, p: Tensor, alpha: float, gamma: float) -> Tensor:
    """``z = argmin alpha (z - m)^2 + gamma (p - relu(z))^2`` per element: the better of the two linear pieces."""
    active = ((gamma * p + alpha * m) / (gamma + alpha)).clamp_(min=0)
    idle = m.clamp(max=0)
    cost_active = alpha * (active - m).square() + gamma * (p - active).square()
    cost_idle = alpha * (idle - m).square() + gamma * p.square()
    return torch.where(cost_active <= cost_idle, active, idle)


def solve_z_gated(m: Tensor, p: Tensor, gate: Tensor, alpha: float, gamma: float) -> Tensor:
    """``z = argmin alpha (z - m)^2 + gamma (p - gate z)^2`` per element, ``gate = phi(s)``; any alpha and gamma."""
    return (alpha * m + gamma * gate * p) / (alpha + gamma * gate.square())


def solve_through(
    activation: Activation, m: Tensor, p: Tensor, scale: Tensor | float, start: Tensor, alpha: float, gamma: float
) -> Tensor:
    """``s = argmin alpha (s - m)^2 + gamma (p - scale phi(s))^2`` per element, for any activation.

    The cost has up to two minima a smooth activation apart. The search starts at the best of ``start``, ``m`` and the
    point where an activation that is the identity for large inputs would give p, and takes Gauss-Newton steps that are
    halved, element by element, where they would raise the cost: it never ends above ``start``.

    Args:
        activation: ``phi``, elementwise.
        m: ``W x``, any shape.
        p: as ``m``.
        scale: ``z`` for the s-step of a gated network; 1 for the z-step of a plain one.
        start: the present value.
        alpha: above 0.
        gamma: at least 0.
    """
    if m.device.type != "cpu" or m.numel() <= _AT_ONCE:
        return _search(activation, m, p, scale, start, alpha, gamma)
    found, scales = torch.empty_like(m), scale if isinstance(scale, Tensor) else torch.full((), scale)
    flat = (found, m, p, scales.expand_as(m), start)
    for part, *given in zip(*(tensor.reshape(-1).split(_AT_ONCE) for tensor in flat), strict=True):
        part.copy_(_search(activation, *given, alpha, gamma))
    return found


def _search(
    activation: Activation, m: Tensor, p: Tensor, scale: Tensor | float, start: Tensor, alpha: float, gamma: float
) -> Tensor:
    def cost(s: Tensor, phi: Tensor) -> Tensor:
        return alpha * (s - m).square() + gamma * (p - scale * phi).square()

    best, phi = start, activation(start)
    lowest = cost(best, phi)
    for other in (m, _identity_root(p, scale, m)):
        other_phi = activation(other)
        best, phi, lowest = _better((best, phi, lowest), (other, other_phi, cost(other, other_phi)))
    reach = torch.ones_like(best)
    for _ in range(_STEPS):
        slope = scale * _derivative(activation, best)
        gradient = alpha * (best - m) + gamma * slope * (scale * phi - p)
        step = gradient / (alpha + gamma * slope.square())
        other = best - reach * step
        other_phi = activation(other)
        other_cost = cost(other, other_phi)
        reach = torch.where(other_cost < lowest, (2 * reach).clamp_(max=1), reach / 4)
        best, phi, lowest = _better((best, phi, lowest), (other, other_phi, other_cost))
    return best


def _better(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Element by element the triple whose last entry, the cost, is lower."""
    lower = second[2] < first[2]
    return tuple(torch.where(lower, b, a) for a, b in zip(first, second, strict=True))


def _identity_root(p: Tensor, scale: Tensor | float, fallback: Tensor) -> Tensor:
    root = p / scale
    return torch.where(torch.isfinite(root), root, fallback).clamp(-1e4, 1e4)


def _derivative(activation: Activation, s: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = s.detach().requires_grad_()
        (slope,) = torch.autograd.grad(activation(leaf).sum(), leaf)
    return slope
