"""Greedy removal of blocks: one after the other goes the one that is missed least (SLEB)."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prune_lab.errors import BadSetting
from prune_lab.models.model import PrunableModel
from prune_lab.models.units import Blocks
from prune_lab.pruning.calibration.partial import Part, PartialForward
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.masks import count_dropped
from prune_lab.pruning.methods.depth import Candidates, Choice, DepthMethod
from prune_lab.pruning.target import Target
from prune_lab.training.losses import Distillation, language_loss
from prune_lab.utils.checks import check_choice, check_whole
from prune_lab.utils.finite import or_infinite
from prune_lab.utils.progress import track
from prune_lab.utils.text import duration

logger = logging.getLogger(__name__)


@dataclass
class GreedyBlocks(DepthMethod):
    """Removes one block at a time: the one without which the model does best on the calibration set.

    All that are left are tried again after each removal, so that ``k`` of ``L`` blocks take about ``k L / 2`` forward
    passes over the calibration set: what enters a block that is tried is kept, and only later blocks are run.

    Args:
        criterion: what is compared: the ``loss`` (next-token cross-entropy) without the block, or ``kl``, the
            divergence of its predictions from those of the model before pruning; both in nats, a mean over tokens.
        protect_first: how many of the first blocks stay.
        protect_last: how many of the last blocks stay.

    Source: Song et al., 2024, SLEB, arXiv:2402.09025 (``loss``); the divergence as in EvoPress, Sieberling
    et al., 2024, arXiv:2410.14649.
    """

    patterns: ClassVar[frozenset[str]] = frozenset({"blocks", "sub_blocks"})
    criterion: str = "loss"
    protect_first: int = 0
    protect_last: int = 0

    def __post_init__(self) -> None:
        check_choice(self, "criterion", ("loss", "kl"))
        check_whole(self, "protect_first", "protect_last", least=0)

    def check_model(self, model: PrunableModel, target: Target) -> None:
        """Whether as many blocks may go as the level asks for."""
        units = target.units(model)[0]
        assert isinstance(units, Blocks)
        allowed = range(units.count)[target.span(units)]
        free, wanted = len(self._unprotected(units, allowed)), count_dropped(target.sparsity, len(allowed))
        if free < wanted:
            raise BadSetting(
                self,
                "protect_first",
                f"and {{at}}.protect_last={self.protect_last} leave {free} {units.kind.replace('_', '-')}, of which "
                f"{wanted} should go; protect fewer, or lower sparsity.level",
            )

    def candidates(self, context: PruningContext, units: Blocks) -> Candidates:
        """Leaves out those that are protected."""
        found = super().candidates(context, units)
        return Candidates(context, units, found.gone, self._unprotected(units, found.free), found.wanted)

    def _unprotected(self, units: Blocks, some: Sequence[int]) -> list[int]:
        first, end = self.protect_first * units.of_block, units.count - self.protect_last * units.of_block
        return [unit for unit in some if first <= unit < end]

    def choose(self, candidates: Candidates) -> Choice:
        """Tries all that are left, until as many are gone as asked for."""
        free, off, order, values = list(candidates.free), candidates.off, list[int](), list[float]()
        with candidates.forward() as forward:
            trial = _Trial(self.criterion, candidates, forward)
            for number in range(1, candidates.wanted + 1):
                start = time.perf_counter()
                costs = trial.costs(free, off)
                best = min(free, key=lambda unit: or_infinite(costs[unit]))
                free.remove(best)
                off |= candidates.parts(best)
                order.append(best)
                values.append(float(f"{costs[best]:.5g}"))
                seconds = time.perf_counter() - start
                logger.info(
                    "%s %d (counted from 0) goes (%d of %d): %s %.4g, %.1f s, %s left",
                    candidates.units.kind.removesuffix("s").replace("_", "-"), best, number, candidates.wanted,
                    self.criterion, costs[best], seconds, duration(seconds * (candidates.wanted - number)),
                )  # fmt: skip
        return Choice(order, {f"{self.criterion}_after_each": values})


class _Trial:
    """The calibration set, and what a model without some parts makes of it."""

    def __init__(self, criterion: str, candidates: Candidates, forward: PartialForward):
        self._candidates, self._forward = candidates, forward
        self._batches = list(candidates.batches())
        self._depth = len(candidates.context.model.blocks)
        self._dense: list[Tensor] = []  # what leaves the last block of the model before pruning, of each batch
        if criterion == "kl":
            self._dense = [forward.hidden(batch)[-1] for batch in self._batches]

    def costs(self, free: Sequence[int], off: set[Part]) -> dict[int, float]:
        """The criterion without each of the units, by unit, a mean over tokens.

        Args:
            free: the units that are tried, ascending.
            off: the parts that are gone already.
        """
        costs = dict.fromkeys(free, 0.0)
        by_block: dict[int, list[int]] = {}
        for unit in free:
            by_block.setdefault(unit // self._candidates.units.of_block, []).append(unit)
        samples = sum(len(batch) for batch in self._batches)
        for number, batch in enumerate(track(self._batches, len(self._batches), "batches")):
            hidden = None  # that enters the block
            dense = self._forward.logits(batch, (), self._depth, self._dense[number]) if self._dense else None
            for block in range(max(by_block) + 1):
                for unit in by_block.get(block, ()):
                    logits = self._forward.logits(batch, off | self._candidates.parts(unit), block, hidden)
                    costs[unit] += len(batch) / samples * self._cost(logits, dense, batch)
                if block < max(by_block):
                    hidden = self._forward.after(batch, off, block, hidden)
        return costs

    def _cost(self, logits: Tensor, dense: Tensor | None, batch: Tensor) -> float:
        if dense is None:
            return float(language_loss(logits, batch))
        return float(Distillation(weight=1.0, temperature=1.0).divergence(logits, dense))
