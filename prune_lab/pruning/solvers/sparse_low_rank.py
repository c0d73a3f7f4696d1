"""A sparse weight and a low-rank part beside it, found together. Tensors in, tensors out."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from prune_lab.pruning.solvers.admm import Pace, Scaled, SelectMask, alps_iterate
from prune_lab.pruning.solvers.least_squares import refit
from prune_lab.pruning.solvers.low_rank import SparseLowRank, with_part

BASIL = Pace(10, (1.1, 1.05, 1.02), 100)
_OVERSAMPLING = 5


@dataclass(frozen=True)
class Joint:
    """How the sparse and the low-rank part are found together.

    Attributes:
        iterations: of ADMM, at most.
        rho: its first penalty.
        damping: of the low-rank fit, as in `fit_low_rank`.
        seed: of the directions that the first low-rank step begins with.
    """

    iterations: int
    rho: float
    damping: float
    seed: int = 0


def jointly(
    goal: Tensor,
    start: SparseLowRank,
    hessian: Tensor,
    scaled: Scaled,
    select_mask: SelectMask,
    settings: Joint,
) -> SparseLowRank:
    """Minimises ``|(W - S - U V) X|^2`` over ``S`` and ``U V`` together, by ADMM in three blocks.

    In coordinates in which every input has the same norm it repeats, from ``L = 0``, ``Y = 0`` and ``D = top_k(W)`` on,

    - ``B = ((W - L) H - Y + rho D) (H + rho I)^-1``, the dense iterate,
    - ``D = top_k(B + Y / rho)`` and ``Y += rho (B - D)``,
    - ``L = argmin |(W - B - L) H^(1/2)|`` of the rank,

    and takes the support of the k largest entries of ``B``. Then the values on it are fitted to ``W - L``, and the part
    to what they leave; neither raises the damped error.

    Args:
        goal: ``W``, ``(out, in)`` float32.
        start: what is to be improved on; its rank, and the type of its weight, are those of the result.
        hessian: of the inputs, ``(in, in)`` float32.
        scaled: the same, damped by ``settings.damping`` of the mean diagonal.
        select_mask: from scores to a mask.
        settings: of the iteration.

    Returns:
        What was found, or ``start`` where its error is no higher; of one round more than ``start``, in the channels'
        own order.

    Raises:
        NotPositiveDefinite: the damped Hessian is not.

    Source: 3BASiL, Makni et al., 2025, arXiv:2603.01376, with the update of rho of the authors' code. There the result
    is the iterate as it is: the low-rank part that of the dense ``B``, and the values on the support those of ``B``.
    The low-rank step begins with the directions of the one before, there with new random ones.
    """
    rank = start.down.shape[0]
    part = _Part(scaled.matrix, rank, settings.seed)
    iterate = alps_iterate(
        goal, scaled, select_mask, iterations=settings.iterations, rho=settings.rho, pace=BASIL, beside=part.follow
    )
    keep = select_mask((iterate * scaled.norms).abs().masked_fill(scaled.dead, -1.0), 1.0)
    low = part.up @ part.down / scaled.norms
    values = refit((goal - low) * scaled.norms, keep, scaled.matrix, damping=0.0, iterations=50, tolerance=1e-4)
    weight = (values / scaled.norms).to(start.weight.dtype)
    found = with_part(goal, weight, None, hessian, rank, settings.damping, start.round + 1)
    return found if found.error < start.error else start


@dataclass
class _Part:
    """The low-rank block of the iteration."""

    matrix: Tensor
    rank: int
    seed: int
    up: Tensor = field(init=False)  # (out, rank), orthonormal
    down: Tensor = field(init=False)  # (rank, in)
    _basis: Tensor | None = None

    def follow(self, residual: Tensor) -> Tensor:
        """Fits the part to what the dense iterate lacks, and returns it times the Hessian.

        One step of a subspace iteration on ``E H E^T``, whose first eigenvectors are the directions of the optimum, and
        the best within the subspace; from the last step's directions, so that it closes in while the iterate settles.
        """
        rows, columns = residual.shape
        if self._basis is None:
            width = min(self.rank + _OVERSAMPLING, rows, columns)
            generator = torch.Generator().manual_seed(self.seed)
            self._basis = torch.randn(rows, width, generator=generator).to(residual)
        basis = torch.linalg.qr(residual @ (self.matrix @ (residual.T @ self._basis))).Q
        inside = basis.T @ residual  # (width, in)
        image = inside @ self.matrix
        vectors = torch.linalg.eigh(image @ inside.T).eigenvectors.flip(1)  # ascending otherwise
        self._basis = basis @ vectors
        self.up = self._basis[:, : self.rank]
        self.down = vectors[:, : self.rank].T @ inside
        product: Tensor = self.up @ (vectors[:, : self.rank].T @ image)
        return product
