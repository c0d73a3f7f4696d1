"""REAP: removes the experts that add least to the tokens that the router sends them."""

import logging
import time
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.models.units import Experts
from prune_lab.pruning.allocation.budget import levels_of
from prune_lab.pruning.block_pruning import BlockPruning
from prune_lab.pruning.calibration.routed import Saliency, collect_saliency
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.masks import Masks, keep_all_but
from prune_lab.pruning.methods.blockwise import BlockMethod
from prune_lab.pruning.result import PruningResult
from prune_lab.pruning.unit_counts import uniform_counts
from prune_lab.utils.checks import check_choice

logger = logging.getLogger(__name__)

SCORES = ("reap", "ean", "frequency")


@dataclass
class REAP(BlockMethod):
    """Scores each expert by the mean over its tokens of ``g(x) * |f(x)|``; of each block the lowest go.

    ``f(x)`` is what the expert makes of a token, and ``g(x)`` the router's weight for it, those of the chosen experts
    adding up to one. An expert that no calibration token is routed to scores zero, and the log names it; those that
    are removed already go first. The kept experts do not change, and the router chooses among them.

    Args:
        score: ``reap``: as above; ``ean``: the sum over its tokens of ``|f(x)|``; ``frequency``: the number of its
            tokens.

    Source: Lasby et al., 2025, arXiv:2510.13999; the other scores are baselines there. Weights that add up
    to one are those of the authors' code since March 2026. There all blocks are scored on the dense model, which
    ``propagate=dense`` does; by default blocks are scored on what the pruned ones before give them.
    """

    score: str = "reap"
    patterns: ClassVar[frozenset[str]] = frozenset({"experts"})
    prunes_experts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_choice(self, "score", SCORES)

    @property
    def divides_samples(self) -> bool:
        """Scores are made of sums over tokens."""
        return True

    @torch.no_grad()
    def prune(self, context: PruningContext) -> PruningResult:
        """Prunes the blocks in order."""
        units = context.target.units(context.model)
        counts = uniform_counts(units, context.target)
        budget = levels_of(counts, {each.name: each.count for each in units})
        result = super().prune(replace(context, target=replace(context.target, budget=budget)))
        # also those of blocks that were pruned before an interruption, and those that were zero before
        result.masks = Masks({each.name: ~each.zero for each in units})
        result.notes["score"] = self.score
        return result

    def prune_block(self, pruning: BlockPruning) -> None:
        """Scores the experts of the block, if it has some, and removes the lowest."""
        for units in pruning.target.units_of(pruning.block):
            assert isinstance(units, Experts)
            start = time.perf_counter()
            saliency, zero = collect_saliency(pruning.inputs, units.moe), units.zero
            score = self.scores(saliency).cpu()
            _tell_idle(units, (saliency.tokens.cpu() == 0) & ~zero)
            dropped = max(pruning.target.dropped(units.name, units.count), int(zero.count_nonzero()))
            keep = keep_all_but(score.masked_fill(zero, -torch.inf), dropped)
            pruning.write_units(units, keep, time.perf_counter() - start)

    def scores(self, saliency: Saliency) -> Tensor:
        """How much each expert matters, ``(experts,)`` float64."""
        if self.score == "frequency":
            return saliency.tokens
        return saliency.norms if self.score == "ean" else saliency.gated / saliency.tokens.clamp_min(1)


def _tell_idle(units: Experts, idle: Tensor) -> None:
    """Says which experts no calibration token was routed to; ``idle`` ``(experts,)`` bool."""
    if bool(idle.any()):
        logger.info(
            "%s: no calibration token was routed to %d of %d experts (%s); they score zero and go first",
            units.name, int(idle.count_nonzero()), units.count, ", ".join(map(str, idle.nonzero().flatten().tolist())),
        )  # fmt: skip
