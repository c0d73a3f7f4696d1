"""A speed as a run's target: the latency table, the seconds that are allowed, and what they come to."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from prune_lab.errors import BadSetting, owned_by
from prune_lab.pruning.allocation.allocation import Allocation
from prune_lab.pruning.latency.settings import told
from prune_lab.pruning.latency.table import LatencyTable
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.target import Target
from prune_lab.pruning.unit_counts import uniform_counts
from prune_lab.run.state import RunState
from prune_lab.utils.collectives import gather
from prune_lab.utils.digests import json_digest


class Speed:
    """What ``sparsity.speedup`` asks for.

    Args:
        target: has a speedup.
        method: that prunes towards it.
    """

    def __init__(self, target: Target, method: Method) -> None:
        self.target, self.method = target, method
        self._measured: tuple[str, LatencyTable] | None = None  # the store may keep nothing

    def prepare(self, allocation: Allocation) -> None:
        """Checks that the method can stop where a time is reached: it must ask how many units go of each layer.

        Raises:
            BadInput: it cannot, or an allocation would divide a level that there is not.
        """
        if self.method.trains or self.method.reaches != "level":
            name = type(self.method).__name__
            raise BadSetting(
                self.target,
                "speedup",
                f"is not for {name}, which goes by {{at}}.level; use method=ziplm, flap, wanda_units, minitron, "
                "taylor_units or text_pruner",
            )
        if not allocation.divides_time:
            raise BadSetting(
                self.target,
                "speedup",
                f"leaves no level that {type(allocation).__name__} could divide; use allocation=evolution_units, or "
                "allocation=uniform with method.scope=model, to prune blocks unequally",
            )

    def timed(self, run: RunState, target: Target | None = None) -> Target:
        """The target with the seconds that are allowed; measures them where that has not been done.

        Raises:
            BadInput: the speed cannot be reached, or a given table is none of this model and machine.
        """
        target = target or self.target
        assert target.speedup is not None
        units, table = target.units(run.model), self._table(run)
        budget = table.budget(units, target.latency.phase, target.speedup)
        timed = replace(target, time=budget)
        if self.method.allocation_conflict is None:  # equal shares
            with owned_by(self.target):
                uniform_counts(units, timed, self.method.least_kept)
            return timed
        least = budget.fixed + sum(curve.least(self.method.least_kept) for curve in budget.curves.values())
        if not budget.fits(least):
            raise budget.out_of_reach(self.target, least, "all units but those that every layer keeps")
        return timed

    def note(self, run: RunState, target: Target, masks: Mapping[str, Tensor]) -> tuple[float, dict[str, object]]:
        """How many times as fast the model is by the table, and what the protocol says of it."""
        assert target.time is not None
        units = target.units(run.model)
        seconds = target.time.of({each.name: int((~masks[each.name]).count_nonzero()) for each in units})
        return target.time.dense / seconds, {
            "phase": target.latency.phase,
            "asked": target.speedup,
            "predicted": target.time.dense / seconds,
            "dense_seconds": target.time.dense,
            "allowed_seconds": target.time.seconds,
            "pruned_seconds": seconds,
            **told(self._table(run)),
        }

    def _table(self, run: RunState) -> LatencyTable:
        key = json_digest(self.target.latency.conditions(run.model, run.device))
        if self._measured is None or self._measured[0] != key:
            with owned_by(self.target, ".latency"):
                table = self.target.latency.table(run.model, run.device)
            self._measured = key, gather(table)[0]  # the same in all processes
        return self._measured[1]
