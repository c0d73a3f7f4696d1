"""ADMM: layer-wise pruning by the alternating direction method of multipliers, with a mask that grows gradually."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.errors import BadSetting
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.calibration.statistics import Hessian
from prune_lab.pruning.masks import keep_all_but, keep_all_but_counts
from prune_lab.pruning.methods.layerwise import LayerwiseMethod
from prune_lab.pruning.methods.selection import SCOPES, counts_of_rows, keep_in_groups, keep_of_layer
from prune_lab.pruning.solvers import admm
from prune_lab.pruning.target import Target
from prune_lab.utils.checks import check_choice, check_number, check_whole


@dataclass
class ADMM(LayerwiseMethod):
    """Updates weights and mask together, for all columns at once (ADMM-Grad).

    With ``A`` the Hessian scaled to a unit diagonal, and damped, it repeats ``Z = mask * (W + U)``, ``U += W - Z``,
    ``W = (W0 A + rho (Z - U)) (A + rho I)^-1``, and ends with Z.

    Args:
        iterations: of the weights.
        mask_iterations: the first of them, in which the mask grows; then it stays.
        damping: added to the Hessian scaled to a unit diagonal.
        rho: weight of the constraint.
        scope: where weights compete: ``layer`` or ``row``.

    Source: Boza, 2024, arXiv:2401.02938. In the authors' code the gradual mask acts only with rows or 2:4; here always.
    N:M targets follow their rule for 2:4, for any N:M: see `select_mask`.
    """

    iterations: int = 20
    mask_iterations: int = 15
    damping: float = 0.1
    rho: float = 1.0
    scope: str = "layer"
    statistic: ClassVar = Hessian
    dense_targets_conflict: ClassVar = None

    def __post_init__(self) -> None:
        check_choice(self, "scope", SCOPES)
        check_whole(self, "iterations", "mask_iterations")
        if self.mask_iterations > self.iterations:
            raise BadSetting(
                self, "mask_iterations", f"is not allowed; allowed: 1 to {{at}}.iterations={self.iterations}"
            )
        check_number(self, "damping", least=0)
        check_number(self, "rho", above=0)

    def prepare(self, statistic: Hessian) -> tuple[admm.Scaled, Tensor]:
        """Scales the Hessian and inverts it once, for all weights that read the same inputs."""
        scaled = admm.Scaled.of(statistic.value, self.damping)
        return scaled, admm.inverse(admm.shifted(scaled.matrix, self.rho))

    def solve(self, linear: PrunableLinear, prepared: tuple[admm.Scaled, Tensor], target: Target) -> Tensor:
        """Iterates."""
        scaled, shifted_inverse = prepared
        zero = target.zeros_to_keep(linear.present)
        return admm.admm(
            linear.weight.float(),
            scaled,
            shifted_inverse,
            lambda scores, share: select_mask(scores, share, target, linear.name, self.scope, zero),
            iterations=self.iterations,
            mask_iterations=self.mask_iterations,
            rho=self.rho,
        )


def select_mask(
    scores: Tensor, share: float, target: Target, name: str, scope: str, zero: Tensor | None = None
) -> Tensor:
    """Keeps the highest of ``scores`` ``(out, in)``, with ``share`` of the target's weights dropped.

    With an N:M target the N highest of each group are safe, and the lowest of all others in the scope go; with a share
    of 1 these others are gone. Weights that are ``zero`` and stay so, ``(out, in)`` bool, are dropped from the start,
    as part of that number.
    """
    if target.n_of_m:
        safe = keep_in_groups(scores, *target.n_of_m, zero)
        if share == 1:
            return safe
        scores, total = scores.masked_fill(safe, torch.inf), safe.numel() - int(safe.count_nonzero())
    else:
        total = target.dropped(name, scores.numel())
    dropped = int(share * total + 1e-9)
    if scope == "layer":
        return keep_of_layer(scores, dropped, zero)
    if zero is not None:
        counts, more = counts_of_rows(zero.sum(1), dropped)
        counts[(counts == counts.min()).nonzero()[:more]] += 1
        return keep_all_but_counts(scores.masked_fill(zero, -torch.inf), counts)
    base, more = divmod(dropped, len(scores))
    keep = keep_all_but(scores, base)
    keep[:more] &= keep_all_but(scores[:more], base + 1)
    return keep
