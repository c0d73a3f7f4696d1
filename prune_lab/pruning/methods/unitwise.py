"""Methods that remove neurons and heads, from one statistic of what they compute."""

import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from prune_lab.models.model import PrunableModel
from prune_lab.models.units import Units
from prune_lab.pruning.allocation.budget import levels_of
from prune_lab.pruning.block_pruning import BlockPruning
from prune_lab.pruning.calibration.blocks import iterate_blocks
from prune_lab.pruning.calibration.collect import collect
from prune_lab.pruning.calibration.shared import is_sum
from prune_lab.pruning.calibration.statistics import Statistic
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.masks import Masks
from prune_lab.pruning.methods.blockwise import BlockMethod, naming, share_of
from prune_lab.pruning.methods.selection import drop_lowest
from prune_lab.pruning.result import PruningResult
from prune_lab.pruning.target import Target
from prune_lab.pruning.unit_counts import check_one_cut, counts_by_score, uniform_counts
from prune_lab.utils.checks import check_choice, check_whole
from prune_lab.utils.collectives import gather, rank

logger = logging.getLogger(__name__)

SCOPES = ("layer", "model")
_COUNTS = "counts"


@dataclass(frozen=True)
class Solution:
    """What a method makes of the units of a layer.

    Attributes:
        keep: ``(count,)`` bool, those that stay.
        weight: of the linear layer that reads them, ``(out, in)``; ``None``: as it is.
        bias: of that layer, ``(out,)``; ``None``: as it is.
    """

    keep: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None


@dataclass
class UnitMethod(BlockMethod):
    """A method that removes neurons and heads by what reaches the linear layer that reads them.

    The down-projection reads neurons, the attention's output reads heads, and one statistic of its inputs is all that
    a method sees. How many go of each layer is settled before anything is pruned: equally many of every block, or
    (``scope=model``) as `counts` says after a walk over the dense model. Then the blocks are pruned in order, and which
    units go is decided from inputs that the pruned blocks before give.

    Args:
        scope: ``layer``: every block loses the same share; ``model``: units of all blocks compete.
        min_units: neurons and heads that every block keeps at least.
    """

    scope: str = "layer"
    min_units: int = 1
    patterns: ClassVar[frozenset[str]] = frozenset({"neurons", "heads", "width", "query_heads", "neurons_query_heads"})
    statistic: ClassVar[type[Statistic]]
    prunes_experts: ClassVar[bool] = True  # it removes heads beside them

    def __post_init__(self) -> None:
        check_choice(self, "scope", SCOPES)
        check_whole(self, "min_units")

    @property
    def divides_samples(self) -> bool:
        """Where the statistic is a sum."""
        return is_sum(self.statistic)

    @property
    def allocation_conflict(self) -> str | None:
        """Returns why one cut for the whole model cannot follow one."""
        if self.scope == "layer":
            return None
        return "makes one cut for the whole model; use allocation=uniform, or {at}.scope=layer"

    @property
    def least_kept(self) -> int:
        """The setting ``min_units``."""
        return self.min_units

    def check_model(self, model: PrunableModel, target: Target) -> None:
        """Refuses a level that one cut over all layers cannot reach."""
        check_one_cut(self, model, target)

    @torch.no_grad()
    def prune(self, context: PruningContext) -> PruningResult:
        """Settles how many units go of each layer, then prunes the blocks in order."""
        units = context.target.units(context.model)
        self.prepare_model(context.model, units)
        counts = self._settled(units, context)
        budget = levels_of(counts, {each.name: each.count for each in units})
        result = super().prune(replace(context, target=replace(context.target, budget=budget)))
        # also those of blocks that were pruned before an interruption, and those that were zero before
        result.masks = Masks({each.name: ~each.zero for each in units})
        return result

    def _settled(self, units: list[Units], context: PruningContext) -> dict[str, int]:
        """How many units go of each layer, by their names; as before an interruption, where there was one."""
        if self.scope == "layer":
            return uniform_counts(units, context.target, self.min_units)
        finished = context.finished_blocks if rank() == 0 else None
        kept = gather(None if finished is None else finished.kept(_COUNTS))[0]
        if kept is not None:
            logger.info("how many units go of each layer was settled before the interruption")
            found: dict[str, int] = kept[1]
            return found
        counts: dict[str, int] = gather(self.counts(units, context))[0]  # other processes may have rounded otherwise
        if finished is not None:
            finished.keep(_COUNTS, {}, counts)
        return counts

    def prune_block(self, pruning: BlockPruning) -> None:
        """Collects the statistic, and prunes the neurons and heads of the block."""
        units, target = pruning.target.units_of(pruning.block), pruning.target
        for linears in pruning.parts():
            ready = [each for each in units if each.reader.linear in linears]
            if not ready:
                continue
            statistics = pruning.collect(
                self.empty_statistic(pruning.inputs.calibration.whole_shape[1]),
                [each.reader.linear for each in ready],
                [member.linear for each in ready for member in each.members],
                aimed=self.dense_targets_conflict is None,
            )
            for each in ready:
                start, linear = time.perf_counter(), each.reader.linear
                dropped = max(target.dropped_units(each), int(each.zero.count_nonzero()))
                with naming(linear, self):
                    zero, statistic = target.zeros_to_keep(linear.weight), statistics.pop(linear.name)
                    aim = pruning.aim([linear], statistic)
                    seen = each if aim is None else each.read_by(aim.seen(linear))
                    solution = self.solve(seen, statistic, dropped, zero)
                seconds = time.perf_counter() - start
                pruning.write_units(each, solution.keep, seconds, weight=solution.weight, bias=solution.bias)

    def prepare_model(self, model: PrunableModel, units: list[Units]) -> None:
        """Changes the model in a way that leaves what it computes, before anything is measured."""

    def empty_statistic(self, seqlen: int) -> Callable[[], Any]:
        """Returns what makes an empty statistic, given the tokens of a sample."""
        return self.statistic

    def of_dense_model(
        self, units: list[Units], context: PruningContext, look: Callable[[Units, Any], Any]
    ) -> dict[str, Any]:
        """Walks the dense model, and returns by the names of units what ``look`` makes of them and their statistic."""
        found: dict[str, Any] = {}
        calibration = share_of(self, context.calibration)
        for block, inputs in iterate_blocks(context.model, calibration, context.target.end(context.model)):
            own = {each.reader.linear.name: each for each in units if each.reader.linear in block.linears}
            if own:
                readers = [each.reader.linear for each in own.values()]
                statistics = collect(inputs, self.empty_statistic(calibration.whole_shape[1]), readers)
                for name, each in own.items():
                    with naming(each.reader.linear, self):
                        found[each.name] = look(each, statistics.pop(name))
        return found

    @abstractmethod
    def counts(self, units: list[Units], context: PruningContext) -> dict[str, int]:
        """Returns how many units of each layer go where those of all layers compete, by their names."""

    @abstractmethod
    def solve(self, units: Units, statistic: Any, dropped: int, zero: Tensor | None) -> Solution:
        """Chooses the units that go, and what becomes of the layer that reads them.

        Args:
            units: of a layer; not changed.
            statistic: of the inputs of the layer that reads them.
            dropped: how many go, of which those that are zero already are the first.
            zero: of that layer, ``(out, in)`` bool, weights that are zero and stay so; ``None``: there are none.
        """

    def solve_counts(
        self, units: Units, statistic: Any, counts: Sequence[int], zero: Tensor | None
    ) -> Iterator[Tensor]:
        """Yields for each count the weight of the layer that reads the units, ``(out, in)``; nothing is written.

        Args:
            units: see `solve`.
            statistic: see `solve`.
            counts: how many units go.
            zero: see `solve`.
        """
        for count in counts:
            solution = self.solve(units, statistic, count, zero)
            weight = units.reader.linear.weight if solution.weight is None else solution.weight
            yield weight * units.reader.spread(solution.keep)


@dataclass
class ScoredUnits(UnitMethod):
    """A method that removes the units with the lowest scores; where those of all layers compete, standardised ones."""

    def counts(self, units: list[Units], context: PruningContext) -> dict[str, int]:
        """Cuts the scores of the dense model: those of inputs, standardised in each layer, and averaged over a unit."""
        scores = self.of_dense_model(units, context, self._standardised)
        return counts_by_score(units, scores, context.target, self, self.min_units)

    def solve(self, units: Units, statistic: Any, dropped: int, zero: Tensor | None) -> Solution:
        """Drops the lowest scores, and leaves the layer as it is."""
        return Solution(self.choose(units, statistic, dropped))

    def choose(self, units: Units, statistic: Any, dropped: int) -> Tensor:
        """Returns the keep-mask ``(count,)`` that drops the lowest scores."""
        score = self.score(units, statistic)
        return drop_lowest(units, score.masked_fill(units.zero.to(score.device), -torch.inf), dropped)

    def score(self, units: Units, statistic: Any) -> Tensor:
        """Returns how much each unit matters in its layer, ``(count,)``: the sum over the inputs that it is."""
        return units.reader.gather(self.columns(units, statistic), units.count)

    @abstractmethod
    def columns(self, units: Units, statistic: Any) -> Tensor:
        """Returns how much each input of the layer that reads the units matters, ``(in,)``."""

    def _standardised(self, units: Units, statistic: Any) -> Tensor:
        """``(count,)`` float64. A layer has few heads, so it is their dimensions that tell mean and deviation."""
        columns = self.columns(units, statistic).double()
        columns = (columns - columns.mean()) / columns.std().clamp_min(torch.finfo(torch.float64).tiny)
        scores = units.reader.gather(columns, units.count) / (len(columns) / units.count)
        return scores.masked_fill(units.zero.to(scores.device), -torch.inf)  # what is gone already is of the level
