"""Judges what refines a pruned block by calibration text that it is not fitted to.

A refinement starts from weights that are there, and may fit the text that it sees better and all other text worse. So
a part of the calibration set is held out of it, and of the method that it starts from (`BlockPruning.hold_out`): of
the weights that it passes through, the first ones included, those with the least error on that part are kept
(`prune_lab.pruning.solvers.best`), and the block is kept as refined only where its outputs are no further from the
dense ones there than before.
"""

import torch
from torch import Tensor

from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.block_pruning import BlockPruning
from prune_lab.pruning.calibration.held_out import HeldOut
from prune_lab.utils.collectives import add_up, gather, hand_out


class BlockJudge:
    """Keeps what refinements made of a block only where its outputs are no further from the dense ones than before.

    Made while the block is dense.

    Args:
        pruning: of the block.
        held: the tokens whose outputs count; where nothing is held out, whatever is made of the block is kept.
        goal: what the block should give for these tokens, ``(tokens, hidden)`` on the host; by default what it gives
            now.
    """

    def __init__(self, pruning: BlockPruning, held: HeldOut, goal: Tensor | None = None):
        self._pruning = pruning
        self._held = held
        self._goal = held.outputs(pruning.inputs) if goal is None else goal
        self._before: dict[PrunableLinear, Tensor] = {}
        self._error = 0.0

    def begin(self) -> None:
        """Notes what the block is before it is refined."""
        if self._held:
            self._before = {linear: linear.weight.clone() for linear in self._pruning.block.linears}
            self._error = self._measure()

    def settle(self) -> None:
        """Gives the block back the weights that it had, where refining them made it worse."""
        changed = [linear for linear, weight in self._before.items() if not torch.equal(linear.weight, weight)]
        if any(gather(bool(changed))) and not self._measure() <= self._error:
            for linear in changed:
                self._pruning.write(linear, self._before[linear], refined=0, handed_out=True)

    def _measure(self) -> float:
        """The squared distance of the outputs to the goal."""
        change = self._held.outputs(self._pruning.inputs).float() - self._goal.float()
        distance = change.square().sum(dtype=torch.float64)
        if self._pruning.inputs.calibration.share is not None:
            add_up([distance])
        else:  # which other machines may have rounded otherwise; all must decide the same
            hand_out(distance, 0)
        return float(distance)
