"""Layers that are fitted to the outputs of the dense model, and not to those of the dense weight on pruned inputs.

With ``dense_targets=t`` a layer of weight ``W`` whose inputs are ``x`` in the dense model and ``x'`` behind what is
pruned is to give ``W ((1 - t) x' + t x)``. Least squares towards that are least squares towards ``W'' x'`` with another
weight ``W''`` (`prune_lab.pruning.solvers.dense_targets`): methods solve as ever, for a layer that shows them ``W''``.
"""

from dataclasses import dataclass

from torch import Tensor

from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.calibration.dense import InputShift
from prune_lab.pruning.calibration.statistics import Covariance, Hessian
from prune_lab.pruning.solvers.dense_targets import correction

_DAMPING = 0.01


@dataclass(frozen=True, eq=False)
class Aimed(PrunableLinear):
    """A linear layer, or rows of one, that shows a solver another weight than the model has.

    Attributes:
        source: as it is in the model.
        goal: the weight to come close to, ``(out, in)`` float32.
    """

    source: PrunableLinear
    goal: Tensor

    @property
    def weight(self) -> Tensor:
        """The weight to come close to."""
        return self.goal

    @property
    def present(self) -> Tensor:
        """The weight that the model has."""
        return self.source.present


class Aim:
    """What layers that read the same inputs are fitted to.

    Args:
        shift: of the inputs; empty afterwards.
        statistic: of the inputs, not changed.
        share: of the dense model's outputs in the targets.

    Raises:
        NotPositiveDefinite: the damped Hessian is not.
    """

    def __init__(self, shift: InputShift, statistic: Hessian | Covariance, share: float):
        hessian = statistic if isinstance(statistic, Hessian) else statistic.hessian
        self._correction = correction(shift.release(), hessian.value, _DAMPING).mul_(share)

    def of(self, weight: Tensor) -> Tensor:
        """What a dense weight ``(out, in)`` becomes as a target: ``(out, in)`` float32."""
        weight = weight.float()
        return weight + weight @ self._correction

    def seen(self, linear: PrunableLinear) -> PrunableLinear:
        """The linear layer as a solver is to see it."""
        return Aimed(linear.name, linear.module, linear, self.of(linear.weight))
