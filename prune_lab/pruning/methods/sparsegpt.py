"""SparseGPT: one-shot pruning with second-order updates of the weights that stay."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.calibration.statistics import Hessian
from prune_lab.pruning.methods.layerwise import LayerwiseMethod
from prune_lab.pruning.solvers import obs
from prune_lab.pruning.target import Target
from prune_lab.utils.checks import check_number, check_whole


@dataclass
class SparseGPT(LayerwiseMethod):
    """Prunes columns left to right and moves each error onto the columns that follow.

    With U the upper Cholesky factor of the inverse of the damped Hessian, a weight scores ``(w_j / U_jj)^2``, and what
    is lost of column j, ``E_j = (w_j - q_j) / U_jj``, changes column k behind it by ``-E_j U_jk``.

    Args:
        block_size: columns whose mask is chosen at once.
        damping: added to the diagonal of the Hessian, as a share of its mean.

    Source: Frantar and Alistarh, 2023, arXiv:2301.00774. The weights go exactly to ``floor(s * out * in)`` zeros a
    layer; the authors' code drops one more in every block of columns. Dead inputs lose their weights first.
    """

    for_encoders: ClassVar[bool] = True

    block_size: int = 128
    damping: float = 0.01
    statistic: ClassVar = Hessian
    dense_targets_conflict: ClassVar = None

    def __post_init__(self) -> None:
        check_whole(self, "block_size", hint="columns")
        check_number(self, "damping", least=0, hint="0.01: 1 % of the mean diagonal")

    def prepare(self, statistic: Hessian) -> obs.Factor:
        """Factorises the Hessian, once for all weights that read the same inputs."""
        return obs.factorize(statistic.release(), self.damping, in_place=True)

    def solves_rows(self, linear: PrunableLinear, target: Target) -> bool:
        """Returns whether weights compete within rows alone."""
        return target.n_of_m is not None

    def solve(self, linear: PrunableLinear, prepared: obs.Factor, target: Target) -> Tensor:
        """Sweeps the columns."""
        return obs.sparsegpt(
            linear.weight,
            prepared,
            target.of(linear.name),
            target.n_of_m,
            block_size=self.block_size,
            zero=target.zeros_to_keep(linear.present),
        )
