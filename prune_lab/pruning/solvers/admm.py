"""Weight updates under a mask, and masks, by the alternating direction method of multipliers (ADMM).

Both solvers minimise ``|(W - V) X|^2`` over sparse ``V`` in coordinates in which every input has the same norm, from
one factorisation of the Hessian for all weights that read the same inputs. Tensors in, tensors out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from prune_lab.errors import NotPositiveDefinite

SelectMask = Callable[[Tensor, float], Tensor]
"""The keep-mask of scores ``(out, in)``, with a share in [0, 1] of the final number of weights dropped."""


@dataclass(frozen=True)
class Scaled:
    """A damped Hessian in coordinates in which it has an even diagonal: ``D matrix D`` is the damped Hessian."""

    matrix: Tensor  # (in, in) float32
    norms: Tensor  # (in,) float32, the diagonal of D
    dead: Tensor  # (in,) bool: inputs that were never active

    @classmethod
    def of(cls, hessian: Tensor, damping: float, damping_of: str = "input") -> "Scaled":
        """Damps and scales a symmetric Hessian ``(in, in)`` of any scale.

        Args:
            hessian: not changed.
            damping: share of a diagonal entry that is added to it.
            damping_of: ``input``: of each input's own entry, so that ``matrix`` has ``1 + damping`` on its diagonal,
                and an input that was never active counts as one of unit norm; ``mean``: of the mean entry, so that
                ``matrix`` has a unit diagonal, and inputs of small norm are damped most.

        Raises:
            NotPositiveDefinite: it is not finite.
        """
        diagonal = hessian.diagonal().clamp(min=0)
        dead = diagonal == 0
        added = damping * diagonal.mean() if damping_of == "mean" else torch.zeros_like(diagonal.mean())
        norms = (diagonal + added).sqrt()
        norms = norms.masked_fill(norms == 0, 1.0)
        matrix = hessian / norms / norms[:, None]
        matrix.diagonal().add_(added / norms.square() if damping_of == "mean" else damping)
        if not bool(torch.isfinite(matrix.sum())):
            raise NotPositiveDefinite("the Hessian has values that are not finite")
        return cls(matrix, norms, dead)


def inverse(matrix: Tensor) -> Tensor:
    """Of a positive definite matrix.

    Raises:
        NotPositiveDefinite: it is none.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info):
        raise NotPositiveDefinite("the Hessian is not positive definite")
    return torch.cholesky_inverse(factor)


def admm(
    weight: Tensor,
    hessian: Scaled,
    shifted_inverse: Tensor,
    select_mask: SelectMask,
    *,
    iterations: int,
    mask_iterations: int,
    rho: float,
) -> Tensor:
    """Prunes a layer while its weights are updated.

    In the first ``mask_iterations`` the mask is chosen anew from the present weights, with a share of the weights
    dropped that grows by the cubic schedule ``1 - (1 - t/T)^3``; then it stays, and the weights converge under it.

    Args:
        weight: ``(out, in)`` float32.
        hessian: of the inputs, damped.
        shifted_inverse: ``(matrix + rho I)^-1``, ``(in, in)`` float32, for the same ``rho``.
        select_mask: from scores and a share to a mask.
        iterations: of the weights.
        mask_iterations: at most ``iterations``.
        rho: weight of the constraint.

    Returns:
        ``(out, in)`` float32, zero where pruned.

    Source: Boza, 2024, arXiv:2401.02938, algorithm 2. The authors' code computes the schedule, but where the mask is
    chosen over a whole layer it drops the final number from the first iteration on; here the schedule acts there too.
    """
    start = weight * hessian.norms
    weight_hessian = start @ hessian.matrix
    current, dual = start, torch.zeros_like(start)
    keep = torch.ones_like(start, dtype=torch.bool)
    for iteration in range(iterations):
        if iteration < mask_iterations:
            share = 1 - (1 - (iteration + 1) / mask_iterations) ** 3
            keep = select_mask((current + dual).abs().masked_fill(hessian.dead, -1.0), share)
        constrained = (current + dual) * keep
        dual += current - constrained
        current = (weight_hessian + rho * (constrained - dual)) @ shifted_inverse
    return (current + dual) * keep / hessian.norms


def penalised_solver(matrix: Tensor, rho: float, rows: int) -> Callable[[Tensor], Tensor]:
    """``right -> right (matrix + rho I)^-1`` for ``right`` ``(rows, in)``, for a few products with the same penalty.

    It takes one Cholesky factorisation. Where there are few rows beside inputs, two triangular solutions follow, which
    cost what a product costs; otherwise one product with the inverse. A sum that float32 cannot factorise is factorised
    in float64, and its inverse is not made.

    Raises:
        NotPositiveDefinite: the sum is not, in float64 either.
    """
    factor, info = torch.linalg.cholesky_ex(shifted(matrix, rho))
    easy = not int(info)
    if not easy:
        factor, info = torch.linalg.cholesky_ex(shifted(matrix.double(), rho))
        factor = factor.to(matrix.dtype)
    if int(info) or not bool(torch.isfinite(factor.diagonal()).all()):
        raise NotPositiveDefinite(f"the Hessian is not positive definite with a penalty of {rho:g}")
    if easy and 2 * rows >= len(matrix):
        inverse = torch.cholesky_inverse(factor)
        return lambda right: right @ inverse
    solve = partial(torch.linalg.solve_triangular, left=False)
    return lambda right: solve(factor, solve(factor.T, right, upper=True), upper=False)


def shifted(matrix: Tensor, rho: float) -> Tensor:
    """``matrix + rho I``, a new tensor."""
    result = matrix.clone()
    result.diagonal().add_(rho)
    return result


@dataclass(frozen=True)
class Pace:
    """How the penalty follows the support.

    Attributes:
        every: iterations between two looks at the support.
        factors: of the penalty, where more than 10 %, more than 0.5 %, or less of it has changed since the last look.
        settled: iterations after which it is enough that less than 0.03 % has.
    """

    every: int
    factors: tuple[float, float, float]
    settled: int


ALPS = Pace(3, (1.3, 1.2, 1.1), 30)


def alps_iterate(
    weight: Tensor,
    scaled: Scaled,
    select_mask: SelectMask,
    *,
    iterations: int,
    rho: float,
    pace: Pace = ALPS,
    beside: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The dense iterate whose largest entries are the support that ALPS finds.

    ADMM with a penalty that grows as long as the support still changes, and stops when it does not.

    Args:
        weight: ``(out, in)`` float32.
        scaled: the inputs' Hessian.
        select_mask: from scores to a mask.
        iterations: at most so many.
        rho: the first penalty.
        pace: of the penalty.
        beside: a third block of variables, which stands beside the sparse weight. Called after each iteration with what
            the dense iterate lacks of the weight, scaled, ``(out, in)``; returns what of it stands beside, times the
            scaled Hessian, likewise.

    Returns:
        The dense iterate in the coordinates of the weight, ``(out, in)`` float32; its largest entries, by
        `select_mask` on its scaled form, are the support.

    Source: Meng et al., 2024, arXiv:2406.07831, algorithm 1, with the update of rho of the authors' code.
    """
    start = weight * scaled.norms
    weight_hessian = start_hessian = start @ scaled.matrix
    penalty = _Penalty(rho, pace=pace)
    support = select_mask(start.abs().masked_fill(scaled.dead, -1.0), 1.0)
    masked = start * support
    primal, sparse, dual = start, masked, torch.zeros_like(start)
    solve = penalised_solver(scaled.matrix, penalty.rho, len(start))
    for iteration in range(1, iterations + 1):
        primal = solve(weight_hessian - dual + penalty.rho * sparse)
        candidate = primal + dual / penalty.rho
        keep = select_mask(candidate.abs().masked_fill(scaled.dead, -1.0), 1.0)
        sparse = candidate * keep
        dual += penalty.rho * (primal - sparse)
        if beside is not None:
            weight_hessian = start_hessian - beside(start - primal)
        if iteration % pace.every == 0:
            changed = int((keep ^ support).count_nonzero()) / max(1, int(keep.count_nonzero()))
            support = keep
            decision = penalty.adapt(changed)
            if decision == "stop" or (iteration >= pace.settled and changed < 3e-4):
                break
            if decision == "restart":
                primal, sparse, dual = start, masked, torch.zeros_like(start)
            solve = penalised_solver(scaled.matrix, penalty.rho, len(start))
    return primal / scaled.norms


@dataclass
class _Penalty:
    """rho, raised the faster the more the support still changes."""

    rho: float
    raised: bool = False
    pace: Pace = ALPS

    def adapt(self, changed: float) -> str:
        """Takes the share of the support that flipped since the last look; says ``go``, ``restart`` or ``stop``."""
        if changed > 0.1:
            factor, self.raised = self.pace.factors[0], True
        elif changed > 0.005:
            factor, self.raised = self.pace.factors[1], True
        elif changed == 0 and self.raised:
            return "stop"
        elif self.raised:
            factor = self.pace.factors[2]
        else:
            self.rho /= 5
            return "restart" if changed else "go"
        self.rho = min(self.rho * factor, 1e6)
        return "go"
