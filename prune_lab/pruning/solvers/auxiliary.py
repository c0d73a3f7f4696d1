"""The p-, z- and s-steps of SparseLLM: they minimise its objective in one auxiliary variable at a time.

For a feed-forward network with inputs x, dense outputs y (without the last bias) and activation ``phi`` the objective
is

    F = beta |y - W_down p|^2 + gamma |p - h|^2 + alpha |z - W_up x|^2 (+ alpha |s - W_gate x|^2)

with ``h = phi(z)``, or ``h = phi(s) z`` with a gate. The p-step, and the z-step of ReLU and of gated networks, are
closed forms; the s-step, and the z-step of other activations, are a search that never raises the objective and need not
end at its least value (`solve_through`). Everything is float32, ``(tokens, ...)``, and per token.

Source: SparseLLM (Bai et al., 2024, arXiv:2402.17946), sections 3.3 and 3.4.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from prune_lab.errors import NotPositiveDefinite

Activation = Callable[[Tensor], Tensor]

_STEPS = 3  # of the one-dimensional search: on real activations the cost is then within 1e-6 of the least, on average
_FAR = 1e4  # where a search may start at most
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
            raise NotPositiveDefinite("the p-step has no solution; raise {at}.gamma or lower {at}.beta")
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
    point where an activation that is the identity for large inputs would give p, and takes Gauss-Newton steps, which
    an element only follows where they lower its cost: it never ends above ``start``.

    Args:
        activation: ``phi``, elementwise.
        m: ``W x``, any shape.
        p: as ``m``.
        scale: ``z`` for the s-step of a gated network; 1 for the z-step of a plain one.
        start: the present value.
        alpha: above 0.
        gamma: at least 0.
    """
    scales = scale if isinstance(scale, Tensor) else torch.full((), scale, device=m.device)
    tensors = (m, p, scales.expand_as(m), start)
    if m.device.type != "cpu" or m.numel() <= _AT_ONCE:
        return _Search(activation, *tensors, alpha, gamma).run()
    found = torch.empty_like(m)
    pieces = (tensor.reshape(-1).split(_AT_ONCE) for tensor in (found, *tensors))
    for part, m_part, p_part, scale_part, start_part in zip(*pieces, strict=True):
        part.copy_(_Search(activation, m_part, p_part, scale_part, start_part, alpha, gamma).run())
    return found


class _Search:
    """The best point so far of every element, with what the next step needs of it.

    Elements are picked by interpolation with weights of 0 and 1, which is several times faster than ``torch.where``.
    """

    def __init__(
        self, activation: Activation, m: Tensor, p: Tensor, scale: Tensor, start: Tensor, alpha: float, gamma: float
    ):
        self._activation, self._m, self._p, self._scale = activation, m, p, scale
        self._alpha, self._gamma = alpha, gamma
        self._best = start.clone()
        self._residual, self._slope = start, start  # of the best point; known once there is one
        self._cost = self._evaluate(start)[0]

    def run(self) -> Tensor:
        self._try(self._m)
        self._try((self._p / self._scale).nan_to_num_(0.0, _FAR, -_FAR).clamp_(-_FAR, _FAR))
        _, self._residual, self._slope = self._evaluate(self._best, sloped=True)
        reach: Tensor | float = 1.0  # a step that would not lower the cost is made shorter the next time
        for step in range(_STEPS):
            lower = self._try(self._best - self._step().mul_(reach), sloped=step < _STEPS - 1)
            reach = lower.mul_(0.75).add_(0.25).mul_(reach)
        return self._best

    def _evaluate(self, s: Tensor, *, sloped: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Cost, ``p - scale phi``, and if ``sloped`` is asked for ``scale`` times the derivative of ``phi``."""
        slope = s
        if sloped:
            with torch.enable_grad():
                leaf = s.detach().requires_grad_()
                phi = self._activation(leaf)
                (slope,) = torch.autograd.grad(phi, leaf, self._scale)
        else:
            phi = self._activation(s)
        residual = torch.addcmul(self._p, self._scale, phi.detach(), value=-1)
        distance = s - self._m
        cost = distance.mul_(distance).mul_(self._alpha).addcmul_(residual, residual, value=self._gamma)
        return cost, residual, slope

    def _step(self) -> Tensor:
        """The Gauss-Newton step, to be subtracted."""
        gradient = (self._best - self._m).mul_(self._alpha).addcmul_(self._slope, self._residual, value=-self._gamma)
        return gradient.div_((self._slope * self._slope).mul_(self._gamma).add_(self._alpha))

    def _try(self, other: Tensor, *, sloped: bool = False) -> Tensor:
        """Moves every element to ``other`` where that costs less; returns where, as 0 and 1.

        Only with ``sloped`` can a step be made from there.
        """
        cost, residual, slope = self._evaluate(other, sloped=sloped)
        lower = (cost < self._cost).to(cost.dtype)
        self._best.lerp_(other, lower)
        self._cost = torch.minimum(self._cost, cost)
        if sloped:
            self._residual = self._residual.lerp(residual, lower)
            self._slope = self._slope.lerp(slope, lower)
        return lower
