"""Methods that prune one block at a time, in order."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from prune_lab.errors import NotPositiveDefinite
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.block_log import iterate_and_tell
from prune_lab.pruning.block_pruning import BlockPruning
from prune_lab.pruning.calibration.blocks import BlockInputs
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.result import PruningResult
from prune_lab.utils.collectives import count

logger = logging.getLogger(__name__)


class BlockMethod(Method):
    """A method that works on one block at a time, in order; another method may start from what it does to a block."""

    @torch.no_grad()
    def prune(self, context: PruningContext) -> PruningResult:
        """Iterates over the blocks, and calls `prune_block` on those in the target's range."""
        result, calibration = PruningResult(), share_of(self, context.calibration)
        for block, inputs in iterate_and_tell(context, calibration, result):
            if context.target.includes(block):
                prune_once(inputs, context, result, self.prune_block)
        return result

    @abstractmethod
    def prune_block(self, pruning: BlockPruning) -> None:
        """Prunes one block in place, by `BlockPruning.write`."""


def share_of(method: Method, calibration: Calibration) -> Calibration:
    """Returns the samples that this process walks: all, or its share; says so where it must walk more than a share."""
    share = calibration.divided() if method.divides_samples else calibration
    if share.share is None and count() > 1:
        why = "there are fewer of them" if method.divides_samples else f"{type(method).__name__} takes more than sums"
        logger.info("each of %d processes works on all calibration samples: %s", count(), why)
    return share


def prune_once(
    inputs: BlockInputs, context: PruningContext, result: PruningResult, prune: Callable[[BlockPruning], None]
) -> None:
    """Prunes a block, unless it was pruned before an interruption; then it gets back what was done to it.

    Args:
        inputs: the block, and what reaches it.
        context: of the pruning.
        result: where it is recorded.
        prune: does it.
    """
    pruning = BlockPruning(inputs, context.target, result, context.seed)
    finished = context.finished_blocks
    if finished is None:
        prune(pruning)
    else:
        finished.settle(result)
        if not finished.restore(pruning):
            prune(pruning)
            finished.note(pruning.block)
    pruning.finish()


@contextmanager
def naming(linear: PrunableLinear, method: Method) -> Iterator[None]:
    """Reports a numerical failure inside with the name of the layer and a remedy, a key of the method."""
    try:
        yield
    except NotPositiveDefinite as error:
        raise NotPositiveDefinite(
            f"{linear.name}: {error.args[0]}; raise {{at}}.damping, or use more calibration tokens (data.samples)",
            method,
        ) from error
