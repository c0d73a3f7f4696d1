"""ZipLM: structured optimal brain surgeon. Units go one after the other, and what is left makes up for them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.errors import BadInput
from prune_lab.models.model import PrunableModel
from prune_lab.models.units import Units
from prune_lab.pruning.allocation.division import Point, divide, divide_budget
from prune_lab.pruning.calibration.statistics import Covariance
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.latency.curve import TimeBudget, options
from prune_lab.pruning.methods.flap import give_biases
from prune_lab.pruning.methods.unitwise import Solution, UnitMethod
from prune_lab.pruning.solvers.exchange import exchange
from prune_lab.pruning.solvers.structured_obs import Elimination, damped, dead_inputs, eliminate, refit_columns
from prune_lab.pruning.target import Target
from prune_lab.pruning.unit_counts import most_to_go, parameters_to_go
from prune_lab.utils.checks import check_choice, check_flag, check_number, check_whole

WEIGHTINGS = ("relative", "absolute")


@dataclass
class ZipLM(UnitMethod):
    """Removes the unit whose loss makes the least output error, moves the weights that are left, and begins anew.

    For unit S, columns of a weight W with inputs of second moment H, that error is ``tr(W_S [C_SS]^-1 W_S^T)`` with C
    the inverse of H over the columns that are left (`prune_lab.pruning.solvers.structured_obs`). In the end the weights
    that are left are found anew by least squares from the dense ones. With ``scope=model`` the errors when so many
    units are gone are measured on the dense model, and the parameters (with ``sparsity.speedup`` the seconds of a
    latency table) divided so that their sum over layers is least.

    Args:
        damping: added to the diagonal of H, as a share of its mean.
        bias: whether a bias is free too, as if inputs had mean zero; the model gets one where the configuration of its
            family can say so. The output error is lower then, never higher.
        weighting: of the errors of layers in their sum: ``relative`` to the layer's output, or ``absolute``.
        per_round: so many neurons go before the losses of the others are found anew; heads go one by one.
        swaps: at most so many times, units that went are exchanged for units that stayed, and the error that is left
            compared; 0: the order in which units went decides alone. The curves of ``scope=model`` are without.

    Source: ZipLM (Kurtic, Frantar and Alistarh, 2023, arXiv:2302.04089), of which no code for this step was published;
    that of DarwinLM (arXiv:2502.07780) is by the same group. Differences: inputs are those of the pruned model
    (theirs: of the dense one), the weights are refitted in the end as in OSSCAR (arXiv:2403.12983), from which
    ``per_round`` and ``swaps`` are, too, heads go with those
    that share their keys and values, and of the search over a latency table there is the dynamic programming and not
    the local search for weights of the layers' errors.
    """

    damping: float = 0.01
    bias: bool = False
    weighting: str = "relative"
    per_round: int = 1
    swaps: int = 0
    statistic: ClassVar = Covariance

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "damping", least=0)
        check_flag(self, "bias")
        check_choice(self, "weighting", WEIGHTINGS)
        check_whole(self, "per_round")
        check_whole(self, "swaps", least=0)

    @property
    def dense_targets_conflict(self) -> str | None:
        """With a free bias the targets would need the means of both inputs."""
        return "cannot do so with a free bias; use {at}.bias=false, or dense_targets=0" if self.bias else None

    def check_model(self, model: PrunableModel, target: Target) -> None:
        """Refuses heads that have unequal numbers of values: columns are eliminated in groups of one size."""
        super().check_model(model, target)
        for each in target.units(model):
            owner = each.reader.owner
            if owner is not None and len(set(owner.bincount().tolist())) > 1:
                raise BadInput(
                    f"{each.name}: heads have unequal numbers of values, and {type(self).__name__} removes columns in "
                    "groups of one size; use method=flap or wanda_units, or sparsity=neurons"
                )

    def prepare_model(self, model: PrunableModel, units: list[Units]) -> None:
        """Gives the layers that read units a bias of zero, where they have none and can have one."""
        if self.bias:
            give_biases(model, units)

    def counts(self, units: list[Units], context: PruningContext) -> dict[str, int]:
        """Divides the parameters so that the sum of the output errors of all layers is least, as measured when dense.

        Between two numbers of units errors are linear, on the lower convex hull; what is left over in the end, less
        than a unit, stays. Of a target of time the seconds are divided instead.
        """
        curves = self.of_dense_model(units, context, self._curve)
        if context.target.time is not None:
            return self._counts_in_time(units, curves, context.target.time)
        points: dict[str, list[Point]] = {
            each.name: [
                (number * each.parameters_each, curves[each.name][number])
                for number in range(0, len(curves[each.name]), each.at_once)
            ]
            for each in units
        }
        parameters = divide(points, parameters_to_go(units, context.target, self, self.min_units))
        sizes = {each.name: each.at_once * each.parameters_each for each in units}
        return {each.name: parameters[each.name] // sizes[each.name] * each.at_once for each in units}

    def _counts_in_time(
        self, units: list[Units], curves: Mapping[str, list[float]], time: TimeBudget
    ) -> dict[str, int]:
        """Numbers of units of which the errors are least and the predicted seconds within the budget."""
        numbers = {each.name: options(each.count, self.min_units) for each in units}
        costs = {
            each.name: [
                (time.curves[each.name].at(each.count - number), curves[each.name][number])
                for number in numbers[each.name]
            ]
            for each in units
        }
        chosen = divide_budget(costs, time.seconds - time.fixed)
        return {name: numbers[name][index] for name, index in chosen.items()}

    def solve(self, units: Units, statistic: Covariance, dropped: int, zero: Tensor | None) -> Solution:
        """Eliminates units, then finds the weights that are left anew, from the dense ones."""
        linear, (weight, hessian) = units.reader.linear, self._problem(units, statistic)
        keep = self._keep(units, weight, hessian, self._eliminate(units, weight, hessian, dropped).order)
        solution = self._refit(units, hessian, keep, zero)
        if not self._has_bias(units):
            return Solution(keep, solution)
        assert linear.bias is not None
        return Solution(keep, solution, linear.bias.double() + (linear.weight.double() - solution) @ statistic.mean)

    def solve_counts(
        self, units: Units, statistic: Covariance, counts: Sequence[int], zero: Tensor | None
    ) -> Iterator[Tensor]:
        """Yields the weights for several counts, all from one elimination."""
        weight, hessian = self._problem(units, statistic)
        order = self._eliminate(units, weight, hessian, max(counts, default=0)).order
        for count in counts:
            yield self._refit(units, hessian, self._keep(units, weight, hessian, order[:count]), zero)

    def _keep(self, units: Units, weight: Tensor, hessian: Tensor, gone: Tensor) -> Tensor:
        keep = torch.ones(units.count, dtype=torch.bool, device=gone.device)
        keep[gone] = False
        return exchange(weight, hessian, weight.shape[1] // units.count, keep, self.swaps, units.at_once)

    def _refit(self, units: Units, hessian: Tensor, keep: Tensor, zero: Tensor | None) -> Tensor:
        return refit_columns(units.reader.linear.weight, hessian, units.reader.spread(keep), zero)

    def _has_bias(self, units: Units) -> bool:
        return self.bias and units.reader.linear.bias is not None

    def _problem(self, units: Units, statistic: Covariance) -> tuple[Tensor, Tensor]:
        """The weight, with zeros for inputs that cost nothing as no token has any, and the damped Hessian."""
        weight = units.reader.linear.weight
        hessian = statistic.value if self._has_bias(units) else statistic.hessian.value
        dead = dead_inputs(hessian)
        return weight.masked_fill(dead, 0) if bool(dead.any()) else weight, damped(hessian, self.damping)

    def _eliminate(self, units: Units, weight: Tensor, hessian: Tensor, removed: int) -> Elimination:
        group = weight.shape[1] // units.count
        return eliminate(weight, hessian, group, removed, self.per_round, units.at_once)

    def _curve(self, units: Units, statistic: Covariance) -> list[float]:
        """The output error when so many units are gone, from none to all but ``min_units``."""
        weight, hessian = self._problem(units, statistic)
        losses = self._eliminate(units, weight, hessian, most_to_go(units, self.min_units)).losses
        weight = weight.double()
        scale = float(((weight @ hessian) * weight).sum()) if self.weighting == "relative" else 1.0
        return [0.0, *(losses.cumsum(0) / (scale or 1.0)).tolist()]  # a layer that computes nothing loses nothing
