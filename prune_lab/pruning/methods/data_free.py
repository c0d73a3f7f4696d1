"""Methods that choose from the weights alone."""

import time
from abc import abstractmethod
from typing import ClassVar

import torch

from prune_lab.models.units import Units
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.block_log import iterate_and_tell
from prune_lab.pruning.block_pruning import BlockPruning
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.masks import Masks
from prune_lab.pruning.methods.blockwise import BlockMethod
from prune_lab.pruning.result import PruningResult
from prune_lab.pruning.target import Target


class DataFreeMethod(BlockMethod):
    """A method that chooses from the weights alone; calibration data serve only to measure its error."""

    patterns: ClassVar[frozenset[str]] = BlockMethod.patterns | {"neurons", "heads"}

    @torch.no_grad()
    def prune(self, context: PruningContext) -> PruningResult:
        """Chooses all masks, then applies them block by block."""
        model, target, start, result = context.model, context.target, time.perf_counter(), PruningResult()
        units = target.units(model) if target.removes_units else []
        if units:
            masks = self.select_units(units, target, context.seed)
            masks.update({each.name: masks[each.name] & ~each.zero for each in units})  # more than asked for, maybe
            seconds = (time.perf_counter() - start) / sum(len(each.members) for each in units)
        else:
            masks = self.select_mask(target.linears(model), target, context.seed)
            seconds = (time.perf_counter() - start) / len(masks)
        for block, inputs in iterate_and_tell(context, context.calibration.first_batch(), result):
            if target.includes(block):
                pruning = BlockPruning(inputs, target, result, context.seed)
                if units:
                    _apply_to_units(units, masks, pruning, seconds)
                else:
                    _apply(masks, block.linears, pruning, seconds)
                pruning.finish()
        if units:
            result.masks = masks
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
        """Returns the keep-masks ``(count,)`` of neurons or heads, by the name of the units."""


def _apply(masks: Masks, linears: tuple[PrunableLinear, ...], pruning: BlockPruning, seconds: float) -> None:
    for linear in linears:
        weight = linear.weight  # (out, in)
        pruning.write(linear, weight * masks[linear.name].to(weight.device), seconds)


def _apply_to_units(units: list[Units], masks: Masks, pruning: BlockPruning, seconds: float) -> None:
    """Zeros what belongs to the units of the block that go; ``seconds`` is the share of each linear layer."""
    of_linear = {member.linear.name: (each, member) for each in units for member in each.members}
    found = [(linear, *of_linear[linear.name]) for linear in pruning.block.linears if linear.name in of_linear]
    for linear, each, member in found:
        keep = member.spread(masks[each.name]).to(linear.weight.device)  # (out,) or (in,)
        pruning.write(linear, linear.weight * (keep[:, None] if member.dim == 0 else keep), seconds)
    for name, each in {each.name: each for _, each, _ in found}.items():
        each.apply(masks[name])  # biases too
