"""LLM-Pruner's importance of neurons and heads: what the loss would change by if their weights were zero."""

import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.data.samples import Samples
from prune_lab.models.model import PrunableModel
from prune_lab.models.units import Units
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.data_free import remove_units
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.methods.selection import keep_units
from prune_lab.pruning.methods.unitwise import SCOPES
from prune_lab.pruning.result import PruningResult
from prune_lab.pruning.target import Target
from prune_lab.pruning.unit_counts import check_one_cut
from prune_lab.training.gradients import gradient_of, sample_gradients
from prune_lab.utils.checks import check_choice, check_whole

ORDERS = ("vector", "first", "second", "mixed")


class GradientUnits(Method):
    """Removes neurons and heads by gradients of the whole model's loss on a few samples; what stays does not change.

    Attributes:
        scope: ``layer``: every block loses the same share; ``model``: units of all blocks compete.
    """

    scope: str
    patterns: ClassVar[frozenset[str]] = frozenset(
        {"neurons", "heads", "width", "query_heads", "neurons_query_heads", "values", "neurons_values"}
    )

    @property
    def allocation_conflict(self) -> str | None:
        """Returns why one cut for the whole model cannot follow one."""
        if self.scope == "layer":
            return None
        return "makes one cut for the whole model; use allocation=uniform, or {at}.scope=layer"

    def check_model(self, model: PrunableModel, target: Target) -> None:
        """Refuses a level that one cut over all layers cannot reach."""
        check_one_cut(self, model, target)


@dataclass
class TaylorUnits(GradientUnits):
    """Scores units by the Taylor expansion of the loss on calibration text; what stays does not change.

    With G the mean gradient over samples and F the mean of its square (the diagonal of the Fisher information), a unit
    counts over all its weights, of the layers it is read from and of the one that reads it: ``sum |W G|`` (``first``),
    ``sum |W^2 F|`` (``second``), ``sum |W G - W^2 F / 2|`` (``mixed``), or the sum over its rows and columns of
    ``|sum W G|`` along each (``vector``).

    The whole model is on the device, with two numbers in float32 for each of its weights.

    Args:
        order: of the expansion, as above.
        samples: how many calibration samples, the first ones.
        seqlen: tokens of each, the first ones; ``None``: all, as of an encoder's texts in any case.
        scope: ``layer``: every block loses the same share; ``model``: units of all blocks compete, by their score for
            each of their parameters.

    Source: LLM-Pruner (Ma, Fang and Wang, 2023, arXiv:2305.11627): 10 samples of 128 tokens (64 in the code), ``first``
    its default. Differences: heads go with those that share their keys and values, by position, where the authors' code
    pairs other ones; all blocks are pruned, where theirs spares the first four and the last two (``sparsity.layers``).
    """

    for_encoders: ClassVar[bool] = True
    order: str = "first"
    samples: int = 10
    seqlen: int | None = 128
    scope: str = "layer"

    def __post_init__(self) -> None:
        check_choice(self, "order", ORDERS)
        check_whole(self, "samples")
        check_whole(self, "seqlen", least=2, optional=True)
        check_choice(self, "scope", SCOPES)

    def prune(self, context: PruningContext) -> PruningResult:
        """Scores all units on the model as it is, then removes the lowest."""
        start, target = time.perf_counter(), context.target
        units = target.units(context.model)
        samples = context.calibration.first(self.samples, self.seqlen)
        expansion = _Expansion(context.model, units, second=self.order in ("second", "mixed"))
        expansion.measure(samples, context.calibration.device)
        scores = {each.name: self._score(each, expansion).masked_fill(each.zero, -torch.inf) for each in units}
        if self.scope == "model":
            scores = {each.name: scores[each.name] / each.parameters_each for each in units}
        masks = keep_units(units, scores, target, self.scope, self)
        return remove_units(context, units, masks, time.perf_counter() - start)

    def _score(self, units: Units, expansion: "_Expansion") -> Tensor:
        """``(count,)`` float32 on the host."""
        total = torch.zeros(units.count)
        for member in units.members:
            assert member.dim is not None
            change = expansion.change(member.linear, self.order)  # (out, in)
            lines = (change if self.order == "vector" else change.abs()).sum(1 - member.dim)  # of each row or column
            total += member.gather(lines.abs(), units.count)
        return total


class _Expansion:
    """The mean gradient of the weights that belong to some units, and the mean of its square."""

    def __init__(self, model: PrunableModel, units: list[Units], *, second: bool):
        self._model = model
        self._linears = {member.linear.name: member.linear for each in units for member in each.members}
        self._mean = {name: torch.zeros(linear.shape) for name, linear in self._linears.items()}
        self._squares = {name: torch.zeros(linear.shape) for name, linear in self._linears.items()} if second else {}

    def measure(self, samples: Samples, device: torch.device) -> None:
        """Adds up over samples."""
        parameters = [linear.module.weight for linear in self._linears.values()]
        for _ in sample_gradients(self._model, parameters, samples, device):
            with torch.no_grad():
                for name, linear in self._linears.items():
                    gradient = linear.seen(gradient_of(linear.module.weight)).float().cpu()
                    self._mean[name].add_(gradient, alpha=1 / len(samples))
                    if self._squares:
                        self._squares[name].addcmul_(gradient, gradient, value=1 / len(samples))

    def change(self, linear: PrunableLinear, order: str) -> Tensor:
        """What the loss changes by for each weight that becomes zero, ``(out, in)``; its sign for ``vector`` only."""
        weight = linear.weight.float()
        if order in ("vector", "first"):
            return weight * self._mean[linear.name]
        curvature = weight.square() * self._squares[linear.name]
        return curvature if order == "second" else weight * self._mean[linear.name] - curvature / 2
