"""Methods that prune one weight at a time, from one statistic of its inputs."""

import time
from abc import abstractmethod
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.block_pruning import BlockPruning
from prune_lab.pruning.calibration.collect import by_statistic
from prune_lab.pruning.calibration.shared import is_sum
from prune_lab.pruning.calibration.statistics import Hessian, Statistic
from prune_lab.pruning.dense_targets import Aim
from prune_lab.pruning.methods.blockwise import BlockMethod, naming
from prune_lab.pruning.sharing import InTurn, Site, Solved, solve_apart
from prune_lab.pruning.target import Target
from prune_lab.utils.collectives import count


class LayerwiseMethod(BlockMethod):
    """A method that works on one weight at a time, from one statistic of its inputs.

    The statistics of a block are collected in one pass, before any of its weights changes (with ``sequential=layer``,
    in one pass for all weights that read the same tensor). Several processes solve for different weights at once.
    """

    statistic: ClassVar[type[Statistic]]
    prunes_experts: ClassVar[bool] = True

    @property
    def divides_samples(self) -> bool:
        """Where the statistic is a sum, and nothing else is taken from the samples."""
        return is_sum(self.statistic) and type(self).prune_block is LayerwiseMethod.prune_block

    def prune_block(self, pruning: BlockPruning) -> None:
        """Collects, prepares each statistic once, and solves for every weight that reads it."""
        aimed = self.dense_targets_conflict is None
        for linears in pruning.parts():
            groups = list(by_statistic(pruning.collect(self.statistic, linears, aimed=aimed), linears))
            sites = [
                Site(
                    linear, number, *self.work(linear), by_rows=count() > 1 and self.solves_rows(linear, pruning.target)
                )
                for number, (_, shared) in enumerate(groups)
                for linear in shared
            ]
            prepared = InTurn(groups, partial(self._prepared, pruning))

            def solve(linear: PrunableLinear, group: int, prepared: InTurn[Any, Any] = prepared) -> Solved:
                start = time.perf_counter()
                with naming(linear, self):
                    aim, of_group = prepared[group]
                    seen = linear if aim is None else aim.seen(linear)
                    weight, order = self.solve_in_order(seen, of_group, pruning.target)
                return Solved(weight, time.perf_counter() - start, order)

            for linear, solved in solve_apart(sites, solve):
                pruning.write(linear, solved.weight, solved.seconds, handed_out=True)
                if solved.order is not None:
                    pruning.result.channel_orders[linear.name] = solved.order.cpu()

    def _prepared(self, pruning: BlockPruning, group: tuple[Any, list[PrunableLinear]]) -> tuple[Aim | None, Any]:
        """What a group of layers is fitted to, and what `solve` gets of its statistic."""
        statistic, linears = group
        return pruning.aim(linears, statistic), self.prepare(statistic)  # in this order: it may empty the statistic

    def work(self, linear: PrunableLinear) -> tuple[float, float]:
        """Returns what solving a row takes, and what preparing the statistic does, in one unit.

        By it several processes divide the layers; by default that of an update from the Hessian, or of a score.
        """
        width = linear.shape[1]
        return (width**2, width**3 / 3) if issubclass(self.statistic, Hessian) else (width, 0.0)

    def solves_rows(self, linear: PrunableLinear, target: Target) -> bool:
        """Returns whether `solve` finds each row without the others, so that several processes may divide them."""
        return False

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
