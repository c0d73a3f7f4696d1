"""A line in the log for each block that was pruned."""

import logging
import math
import time
from collections.abc import Iterator

from prune_lab.models.block import Block
from prune_lab.pruning.calibration.blocks import BlockInputs, iterate_blocks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.result import PruningResult
from prune_lab.utils.text import duration

logger = logging.getLogger(__name__)

_RECENT = 3  # blocks, by which the time left is told: those restored after an interruption take none


def iterate_and_tell(
    context: PruningContext, calibration: Calibration, result: PruningResult, *, dense: bool = False
) -> Iterator[tuple[Block, BlockInputs]]:
    """Iterates over the blocks up to the last of the target, and says of each that was pruned what was done to it.

    Args:
        context: of the pruning.
        calibration: the samples that this process walks.
        result: where the caller has recorded a block when it asks for the next one.
        dense: whether the dense model's hidden states are walked, too (`iterate_blocks`); with
            `Calibration.dense_targets` they always are.
    """
    model, target = context.model, context.target
    end = target.end(model)
    numbers = {block.name: number for number, block in enumerate(filter(target.includes, model.blocks[:end]), 1)}
    taken: list[float] = []  # seconds of the blocks so far
    for block, inputs in iterate_blocks(model, calibration, end, dense=dense or calibration.dense_targets > 0):
        start = time.perf_counter()
        yield block, inputs
        if block.name in numbers:
            taken.append(time.perf_counter() - start)
            _say(block, numbers[block.name], len(numbers), taken, result)


def _say(block: Block, number: int, count: int, taken: list[float], result: PruningResult) -> None:
    """For example ``block 3 of 12: sparsity 50.00%, output error 0.0214, 4.1 s, 37 s left``."""
    rows = [result.layers[linear.name] for linear in block.linears if linear.name in result.layers]
    parts = []
    if rows:
        sizes = [math.prod(row.shape) for row in rows]
        zeros = sum(row.sparsity * size for row, size in zip(rows, sizes, strict=True))
        parts.append(f"sparsity {zeros / sum(sizes):.2%}")
        error = rows[0].block_error
        if error is not None and math.isfinite(error):
            parts.append(f"output error {error:.3g}")
    parts.append(f"{taken[-1]:.1f} s")
    if number < count:
        recent = taken[-_RECENT:]
        parts.append(f"{duration(sum(recent) / len(recent) * (count - number))} left")
    logger.info("block %d of %d: %s", number, count, ", ".join(parts))
