"""Methods that choose from the weights alone."""

import time
from abc import abstractmethod
from typing import ClassVar

import torch

from prune_lab.models.model import PrunableModel
from prune_lab.models.units import Units
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.block_log import iterate_and_tell
from prune_lab.pruning.block_pruning import BlockPruning
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.masks import Masks
from prune_lab.pruning.methods.blockwise import BlockMethod
from prune_lab.pruning.result import PruningResult
from prune_lab.pruning.target import Target
from prune_lab.pruning.unit_counts import check_one_cut


class DataFreeMethod(BlockMethod):
    """A method that chooses from the weights alone; calibration data serve only to measure its error.

    Attributes:
        scope: where scores compete; ``model``: those of all layers.
    """

    patterns: ClassVar[frozenset[str]] = BlockMethod.patterns | {
        "neurons", "heads", "width", "query_heads", "neurons_query_heads", "values", "neurons_values", "keys",
        "neurons_values_keys", "experts", "blocks", "sub_blocks",
    }  # fmt: skip
    prunes_experts: ClassVar[bool] = True

    scope: str = "layer"

    def check_model(self, model: PrunableModel, target: Target) -> None:
        """Refuses a level that one cut over all layers cannot reach."""
        check_one_cut(self, model, target)

    @torch.no_grad()
    def prune(self, context: PruningContext) -> PruningResult:
        """Chooses all masks, then applies them block by block."""
        model, target, start = context.model, context.target, time.perf_counter()
        if target.removes_units:
            units = target.units(model)
            masks = self.select_units(units, target, context.seed)
            return remove_units(context, units, masks, time.perf_counter() - start)
        result = PruningResult()
        masks = self.select_mask(target.linears(model), target, context.seed)
        seconds = (time.perf_counter() - start) / len(masks)
        for block, inputs in iterate_and_tell(context, context.calibration.first_batch(), result):
            if target.includes(block):
                pruning = BlockPruning(inputs, target, result, context.seed)
                _apply(masks, block.linears, pruning, seconds)
                pruning.finish()
        return result

    def prune_block(self, pruning: BlockPruning) -> None:
        """Chooses and applies the masks of one block, for a method that starts from them."""
        for linears in pruning.parts():
            start = time.perf_counter()
            masks = self.select_mask(list(linears), pruning.target, pruning.seed)
            _apply(masks, linears, pruning, (time.perf_counter() - start) / len(linears))

    @abstractmethod
    def select_mask(self, linears: list[PrunableLinear], target: Target, seed: int) -> Masks:
        """Returns the keep-masks of all linear layers, ``(out, in)`` each."""

    @abstractmethod
    def select_units(self, units: list[Units], target: Target, seed: int) -> Masks:
        """Returns the keep-masks ``(count,)`` of neurons, heads, values or blocks, by the name of the units."""


def remove_units(context: PruningContext, units: list[Units], masks: Masks, seconds: float) -> PruningResult:
    """Zeros the units that masks drop, block by block, and measures the error of that on the first batch.

    Args:
        context: of the pruning.
        units: of the target.
        masks: keep-masks ``(count,)`` by the name of the units.
        seconds: that the choice took.
    """
    result, each_seconds = PruningResult(), seconds / len(units)
    for each in units:
        keep, span = masks[each.name], context.target.span(each)
        keep[span] &= ~each.zero[span]  # more than asked for, maybe
        masks[each.name] = keep
    for block, inputs in iterate_and_tell(context, context.calibration.first_batch(), result):
        if context.target.includes(block):
            pruning = BlockPruning(inputs, context.target, result, context.seed)
            for each in units:
                pruning.write_units(each, masks[each.name], each_seconds)
            pruning.finish()
    result.masks = masks
    if context.target.removes_depth:
        result.notes[f"removed_{units[0].kind}"] = (~masks[units[0].name]).nonzero().flatten().tolist()
    return result


def _apply(masks: Masks, linears: tuple[PrunableLinear, ...], pruning: BlockPruning, seconds: float) -> None:
    for linear in linears:
        weight = linear.weight  # (out, in)
        pruning.write(linear, weight * masks[linear.name].to(weight.device), seconds)
