"""What methods share that remove whole blocks, or halves of them."""

import logging
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.models.units import Blocks, Units
from prune_lab.pruning.calibration.partial import Part, PartialForward
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.masks import Masks, count_dropped
from prune_lab.pruning.methods.data_free import remove_units
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.result import PruningResult
from prune_lab.utils.collectives import gather

logger = logging.getLogger(__name__)


@dataclass
class Choice:
    """Which units go.

    Attributes:
        order: their numbers, in the order in which they were chosen.
        notes: the scores behind it, for the protocol.
    """

    order: list[int]
    notes: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Candidates:
    """What a choice is made from.

    Attributes:
        context: of the pruning.
        units: the blocks or sub-blocks of the model.
        gone: those that do nothing, as they are zero already.
        free: those that may go, ascending, without `gone`.
        wanted: how many of `free` go.
    """

    context: PruningContext
    units: Blocks
    gone: Sequence[int]
    free: Sequence[int]
    wanted: int

    def parts(self, unit: int) -> set[Part]:
        """The parts of blocks that a unit is."""
        return {divmod(unit, 2)} if self.units.of_block == 2 else {(unit, 0), (unit, 1)}

    @property
    def off(self) -> set[Part]:
        """The parts that do nothing already."""
        return {part for unit in self.gone for part in self.parts(unit)}

    def batches(self) -> Iterator[Tensor]:
        """The calibration set, ``(samples, seqlen)`` at a time, on the device."""
        calibration = self.context.calibration
        for batch in calibration.batches():
            yield calibration.tokens[batch].to(calibration.device)

    @contextmanager
    def forward(self) -> Iterator[PartialForward]:
        """The model on the device, to be run in part."""
        model, device = self.context.model, self.context.calibration.device
        with model.placed(device) as hf, PartialForward(model, hf) as forward, torch.no_grad():
            yield forward


class DepthMethod(Method):
    """A method that looks at the whole model and chooses blocks that go; weights of the others do not change.

    Blocks that are zero already are the first to go, and count.
    """

    patterns: ClassVar[frozenset[str]] = frozenset({"blocks"})
    prunes_experts: ClassVar[bool] = True

    @property
    def allocation_conflict(self) -> str | None:
        """Returns why a choice among all blocks cannot follow one."""
        return "chooses among all blocks, which go whole; use allocation=uniform"

    @abstractmethod
    def choose(self, candidates: Candidates) -> Choice:
        """Chooses ``candidates.wanted`` of the units that are free."""

    def prune(self, context: PruningContext) -> PruningResult:
        """Chooses, and sets the weights of what goes to zero."""
        start = time.perf_counter()
        units = context.target.units(context.model)[0]
        assert isinstance(units, Blocks)
        candidates = self.candidates(context, units)
        found = self.choose(candidates) if candidates.wanted else Choice([])
        choice = gather(found)[0]  # other machines may have rounded otherwise
        keep = torch.ones(units.count, dtype=torch.bool)
        order = [*candidates.gone, *choice.order]
        keep[order] = False
        logger.info("%s that go, counted from 0: %s", _named(units), ", ".join(map(str, order)))
        with torch.no_grad():
            result = remove_units(context, [units], Masks({units.name: keep}), time.perf_counter() - start)
        result.notes |= {f"removed_{units.kind}": order, **choice.notes}
        return result

    def candidates(self, context: PruningContext, units: Blocks) -> Candidates:
        """What may go of a model."""
        span, zero = context.target.span(units), units.zero
        allowed = range(units.count)[span]
        gone = [unit for unit in allowed if zero[unit]]
        wanted = max(0, count_dropped(context.target.sparsity, len(allowed)) - len(gone))
        return Candidates(context, units, gone, [unit for unit in allowed if not zero[unit]], wanted)


def rounded(scores: Mapping[int, float]) -> dict[str, float]:
    """Scores of units as a protocol has them."""
    return {str(unit): float(f"{score:.5g}") for unit, score in scores.items()}


def _named(units: Units) -> str:
    return units.kind.replace("_", "-")
