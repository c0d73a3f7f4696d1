"""Wanda: drops the weights whose input-scaled magnitude is least in their row."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prune_lab.calibration import InputNorm
from prune_lab.methods.base import SiteMethod, keep_in_rows
from prune_lab.models.view import Site
from prune_lab.target import Target


@dataclass
class Wanda(SiteMethod):
    """Scores each weight ``|W_ij| * ||x_j||`` and drops ``floor(s * in)`` of every row; the kept weights do not change.

    Source: Sun et al., 2023, arXiv:2306.11695, equation 1. As in the authors' code, all weights of a block are scored
    on one pass through the block while it is dense, and blocks are pruned in order.
    """

    statistic: ClassVar = InputNorm

    def solve(self, site: Site, prepared: InputNorm, target: Target) -> Tensor:
        """Cuts the scores within rows."""
        keep = keep_in_rows(site.weight.abs() * prepared.value, target, site.name)  # (out, in) * (in,)
        return site.weight * keep
