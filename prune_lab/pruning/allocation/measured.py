"""Measured: divides the budget by the output error that a method makes in each layer at a few levels."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from prune_lab.errors import BadInput, BadSetting
from prune_lab.models.model import PrunableModel
from prune_lab.pruning.allocation.allocation import LayerAllocation, entries_of, total_dropped
from prune_lab.pruning.allocation.budget import levels_of
from prune_lab.pruning.allocation.division import Point, divide
from prune_lab.pruning.calibration.blocks import BlockInputs, iterate_blocks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.shared import is_sum
from prune_lab.pruning.masks import count_dropped
from prune_lab.pruning.methods.layerwise import LayerwiseMethod
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.search.solving import check_inner, solve_levels
from prune_lab.pruning.solvers.gram import output_energy
from prune_lab.pruning.target import Target
from prune_lab.utils.checks import check_choice, is_number

WEIGHTINGS = ("relative", "size", "absolute")


@dataclass
class Measured(LayerAllocation):
    """Minimises the sum over layers of the output error ``|dW X|^2 / |W X|^2``, as measured on the dense model.

    One walk collects the Hessian ``H`` of each layer; ``inner`` solves the layer at each of ``levels`` from one
    factorisation, nothing of which is written, and ``tr(dW H dW^T) / tr(W H W^T)`` is noted. Between the levels, and
    down to the dense layer without error, the error is taken to be linear on the lower convex hull of the points; for
    such curves the division is the optimum (see `divide`). Errors of layers are taken to add up: what an early layer
    does to the inputs of a later one is not seen.

    Args:
        inner: what the errors are measured with; by default SparseGPT, whatever prunes in the end.
        levels: where; no layer loses more than the highest.
        weighting: ``relative``; ``size`` to count each error times the weights of its layer; or ``absolute`` to leave
            out the division by ``|W X|^2``.

    Source: ours. The same data as EvoPress (arXiv:2410.14649) searches over with the loss of the whole model.
    """

    inner: LayerwiseMethod = field(default_factory=SparseGPT)
    levels: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    weighting: str = "relative"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_inner(self)
        is_list = isinstance(self.levels, Sequence) and not isinstance(self.levels, str)
        if not is_list or not self.levels or not all(is_number(level, least=0, below=1) for level in self.levels):
            raise BadSetting(self, "levels", "is not allowed; allowed: a list of numbers in [0, 1), as in [0.5,0.7]")
        self.levels = sorted(self.levels)
        check_choice(self, "weighting", WEIGHTINGS)

    def check(self, target: Target) -> None:
        """Whether the levels reach far enough."""
        super().check(target)
        self.inner.check(target)
        if target.sparsity > self.levels[-1]:
            raise BadInput(
                f"sparsity.level={target.sparsity:g} is more than the highest of {{at}}.levels, "
                f"{self.levels[-1]:g}, which no layer may exceed; add a higher one",
                self,
            )

    @torch.no_grad()
    def target_levels(self, model: PrunableModel, calibration: Calibration, target: Target) -> dict[str, float]:
        """Walks the dense model, then divides: the total is right as it is."""
        linears, caps = target.linears(model), self.caps(model, target)
        curves: dict[str, list[Point]] = {}
        calibration = calibration.divided() if is_sum(self.inner.statistic) else calibration
        for block, inputs in iterate_blocks(model, calibration, target.end(model)):
            if target.includes(block):
                curves |= self._curves(inputs, target, caps)
        return levels_of(divide(curves, total_dropped(linears, target)), entries_of(linears))

    def caps(self, model: PrunableModel, target: Target) -> dict[str, int]:
        """No more than at the highest level."""
        caps, entries = super().caps(model, target), entries_of(target.linears(model))
        return {name: min(cap, count_dropped(self.levels[-1], entries[name])) for name, cap in caps.items()}

    def _curves(self, inputs: BlockInputs, target: Target, caps: dict[str, int]) -> dict[str, list[Point]]:
        """The points of a block's linear layers: the dense layer without error, and one a level."""
        entries = entries_of(inputs.block.linears)
        counts = {
            name: sorted({min(count_dropped(level, size), caps[name]) for level in self.levels} - {0})
            for name, size in entries.items()
        }
        curves: dict[str, list[Point]] = {name: [(0, 0.0)] for name in entries}
        for solved in solve_levels(inputs, self.inner, target, counts, hessians=True):
            assert solved.hessian is not None
            dense = solved.linear.weight.float()
            scale = 1.0 if self.weighting == "absolute" else output_energy(dense, solved.hessian)
            if self.weighting == "size":
                scale /= dense.numel()
            error = output_energy(dense - solved.weight.float(), solved.hessian)
            # a layer without outputs costs nothing
            curves[solved.linear.name].append((solved.count, error / scale if scale > 0 else 0.0))
        return curves
