"""Methods that prune one weight at a time, from one statistic of its inputs."""

import time
from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.block_pruning import BlockPruning
from prune_lab.pruning.calibration.collect import by_statistic
from prune_lab.pruning.calibration.statistics import Statistic
from prune_lab.pruning.methods.blockwise import BlockMethod, naming
from prune_lab.pruning.target import Target


class LayerwiseMethod(BlockMethod):
    """A method that works on one weight at a time, from one statistic of its inputs.

    The statistics of a block are collected in one pass, before any of its weights changes (with ``sequential=layer``,
    in one pass for all weights that read the same tensor).
    """

    statistic: ClassVar[type[Statistic]]

    def prune_block(self, pruning: BlockPruning) -> None:
        """Collects, prepares each statistic once, and solves for every weight that reads it."""
        for linears in pruning.parts():
            for statistic, shared in by_statistic(pruning.collect(self.statistic, linears), linears):
                start = time.perf_counter()
                with naming(shared[0], self):
                    prepared = self.prepare(statistic)
                for linear in shared:
                    with naming(linear, self):
                        weight, order = self.solve_in_order(linear, prepared, pruning.target)
                    pruning.write(linear, weight, time.perf_counter() - start)
                    if order is not None:
                        pruning.result.channel_orders[linear.name] = order.cpu()
                    start = time.perf_counter()

    def prepare(self, statistic: Any) -> Any:
        """Returns what `solve` gets of a statistic: work done once for all weights that read the same inputs."""
        return statistic

    @abstractmethod
    def solve(self, linear: PrunableLinear, prepared: Any, target: Target) -> Tensor:
        """Returns the pruned weight, ``(out, in)``, any float type; zero where pruned. ``linear`` is not changed."""

    def solve_in_order(self, linear: PrunableLinear, prepared: Any, target: Target) -> tuple[Tensor, Tensor | None]:
        """Returns the pruned weight, and the order of the input channels in which an N:M pattern holds.

        Returns:
            ``(out, in)`` as from `solve`; and ``(in,)`` int64, or ``None`` for the channels as they are, the default.
        """
        return self.solve(linear, prepared, target), None
