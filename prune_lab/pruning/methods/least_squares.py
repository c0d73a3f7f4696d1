"""Least squares: the values of another method's kept weights, refitted exactly."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.statistics import Hessian
from prune_lab.pruning.methods.blockwise import BlockMethod
from prune_lab.pruning.methods.refining import RefiningMethod
from prune_lab.pruning.solvers.least_squares import refit
from prune_lab.pruning.target import Target
from prune_lab.utils.checks import check_number


@dataclass
class LeastSquares(RefiningMethod):
    """Keeps the mask of ``inner`` and gives the kept weights the values with the least output error.

    That is ``tr((W - V) H (W - V)^T)``, minimal over all V that are zero where the mask is.

    Args:
        inner: chooses the mask.
        damping: added to the diagonal of the Hessian, as a share of its mean.

    Source: the reconstruction step that SparseGPT approximates column by column (Frantar and Alistarh, 2023,
    arXiv:2301.00774, section 3.1), solved to convergence for every row.
    """

    inner: BlockMethod
    damping: float = 0.01
    statistic: ClassVar = Hessian
    dense_targets_conflict: ClassVar = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "damping", above=0)

    def prepare(self, statistic: Hessian, calibration: Calibration) -> Tensor:
        """Returns the Hessian, ``(in, in)``."""
        return statistic.value

    def refine(self, dense: Tensor, pruned: Tensor, prepared: Tensor, target: Target) -> Tensor:
        """Refits on the support."""
        return refit(dense.float(), pruned != 0, prepared, damping=self.damping)
