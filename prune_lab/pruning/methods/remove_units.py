"""Removes neurons and heads that were chosen before, block by block."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from prune_lab.models.units import Units
from prune_lab.pruning.block_log import iterate_and_tell
from prune_lab.pruning.block_pruning import BlockPruning
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.masks import Masks
from prune_lab.pruning.result import PruningResult


def remove_units(
    context: PruningContext, units: Sequence[Units], keep: Mapping[str, Tensor], seconds: float
) -> PruningResult:
    """Sets what belongs to the other units to zero, and measures what that does on the first batch.

    Args:
        context: of the pruning.
        units: of all layers of the target.
        keep: ``(count,)`` bool, by their names; those that are zero already are gone, whatever it says.
        seconds: that choosing all of them took.
    """
    result = PruningResult()
    masks = Masks({each.name: keep[each.name] & ~each.zero for each in units})
    for block, inputs in iterate_and_tell(context, context.calibration.first_batch(), result):
        if context.target.includes(block):
            pruning = BlockPruning(inputs, context.target, result, context.seed)
            for each in context.target.units_of(block):
                pruning.write_units(each, masks[each.name], seconds / len(units))
            pruning.finish()
    result.masks = masks
    return result
