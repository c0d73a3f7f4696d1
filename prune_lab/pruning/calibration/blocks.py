"""Runs a model block by block over the calibration set.

`iterate_blocks` is the one place that moves blocks: on the device are one block, its statistics and one batch of
activations. The hidden states of the calibration set are held once, and are overwritten in place: on a GPU, where they
take little of its memory, and on the host otherwise. Nothing here collects, writes or reports anything; see
`prune_lab.pruning.calibration.collect` and `prune_lab.pruning.block_pruning`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from prune_lab.errors import BadInput, RunFailed
from prune_lab.models.block import Block
from prune_lab.models.model import PrunableModel
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.capture import Call, capture_block_inputs
from prune_lab.pruning.calibration.precision import widen
from prune_lab.utils.device import has_room_for, release_free_memory
from prune_lab.utils.finite import all_finite
from prune_lab.utils.memory import available_memory, gigabytes
from prune_lab.utils.products import fast_products
from prune_lab.utils.progress import track


@dataclass
class BlockInputs:
    """The calibration set as it reaches one block, and the block's forward passes over it.

    Attributes:
        block: the block, on the device.
        calibration: the calibration set.
        hidden: the hidden states that enter the block, ``(samples, seqlen, hidden)`` in the type of the model, on the
            device or on the host; all blocks share one tensor.
        calls: the other arguments of the block, one a batch.
        last: no block follows whose inputs matter, so the outputs of this one are not computed.
        dense: the calibration set as it reaches the block in the dense model, if that was asked for.
    """

    block: Block
    calibration: Calibration
    hidden: Tensor
    calls: list[Call]
    last: bool = False
    dense: "BlockInputs | None" = None
    _propagated: bool = field(default=False, init=False)

    def parts(self) -> tuple[tuple[PrunableLinear, ...], ...]:
        """Groups the linear layers that are calibrated at once: all of the block, or those that are reached at once."""
        return self.block.steps if self.calibration.sequential == "layer" else (self.block.linears,)

    def batches(self) -> list[tuple[slice, Call]]:
        """Lists the batches as `run` takes them."""
        return list(zip(self.calibration.batches(), self.calls, strict=True))

    def run(self, batch: slice, call: Call) -> Any:
        """Makes one forward pass of the block, and returns what the block returns."""
        hidden = self.hidden[batch].to(self.calibration.device)
        with fast_products(hidden.dtype, hidden.device):
            return self.block.module(hidden, *call.args, **call.kwargs)

    def run_wide(self, batch: slice, call: Call) -> Any:
        """Makes one forward pass of the block in float32; to be called inside `widened`."""
        hidden = self.hidden[batch].to(self.calibration.device).float()
        return self.block.module(hidden, *widen(call.args), **widen(call.kwargs))

    def first_output(self) -> Tensor:
        """Returns the block's output on the first batch, ``(samples, seqlen, hidden)``, on the device."""
        return self.block.hidden(self.run(*self.batches()[0]))

    def propagate(self, watch: Callable[[slice, Tensor], None] | None = None) -> None:
        """Runs the block as it now is, and overwrites its inputs with its outputs, which the next block reads.

        Does nothing if it was called before, nor for the last block.

        Args:
            watch: is shown each batch's output, ``(samples, seqlen, hidden)`` on the device, before it is stored.

        Raises:
            RunFailed: an output is not finite.
        """
        if self.last or self._propagated:
            return
        self._propagated = True
        for batch, call in self.batches():
            out = self.block.hidden(self.run(batch, call))
            if watch is not None:
                watch(batch, out)
            if not all_finite(out):
                first = batch.start + (self.calibration.share.start if self.calibration.share else 0)
                raise RunFailed(
                    f"{self.block.name}: the outputs have NaN or infinite values on the calibration samples "
                    f"{first} to {first + len(out) - 1}; use model.dtype=float32, or a lower sparsity"
                )
            self.hidden[batch].copy_(out)


@torch.no_grad()
def iterate_blocks(
    model: PrunableModel, calibration: Calibration, blocks: int | None = None, *, dense: bool = False
) -> Iterator[tuple[Block, BlockInputs]]:
    """Yields each block on the device with its calibration inputs; the next sees this one's outputs as you left it.

    The hidden states equal those of the model's own forward exactly: every block gets the arguments that the model
    gives to it (they differ between blocks of one model, by sliding window or attention kind). Whoever wants the next
    block to see other outputs, or to look at them, calls `BlockInputs.propagate` before the next block is asked for.

    Args:
        model: left as it is, but for what the caller writes.
        calibration: the data.
        blocks: how many, from the first; all by default.
        dense: whether to walk the dense model's hidden states beside those of the pruned one. The caller propagates
            them (`BlockInputs.dense`) while the block is dense, or has dense values; otherwise this one's are taken to
            be unchanged. It takes the memory of the hidden states twice.

    Raises:
        BadInput: a calibration token is outside the vocabulary, or the hidden states do not fit into memory.
        RunFailed: activations are not finite.
    """
    _check_tokens(model, calibration)
    place = _place_of_hidden_states(model, calibration, copies=2 if dense else 1)
    hidden, calls = capture_block_inputs(model, calibration, place)
    dense_hidden = hidden.clone() if dense else None
    wanted = model.blocks[:blocks]
    for block, block_calls in track(zip(wanted, calls, strict=False), len(wanted), "blocks"):
        inputs = BlockInputs(block, calibration, hidden, block_calls, last=block is wanted[-1])
        if dense_hidden is not None:
            inputs.dense = replace(inputs, hidden=dense_hidden)
        with model.at_work(block, calibration.device):
            yield block, inputs
            if inputs.dense is not None:
                inputs.dense.propagate()
            inputs.propagate()
        release_free_memory(calibration.device)


def _check_tokens(model: PrunableModel, calibration: Calibration) -> None:
    top, bottom = int(calibration.tokens.max()), int(calibration.tokens.min())
    if bottom < 0 or top >= model.vocab_size:
        raise BadInput(
            f"the calibration tokens reach from {bottom} to {top}, but {model.name} has the ids 0 to "
            f"{model.vocab_size - 1}; were they made with another tokenizer?"
        )


def _place_of_hidden_states(model: PrunableModel, calibration: Calibration, copies: int) -> torch.device:
    """Where the hidden states are held: with the blocks, if they take at most a quarter of the memory that is free."""
    available, (samples, seqlen) = available_memory(), calibration.tokens.shape
    needed = copies * samples * seqlen * int(model.hf.config.get_text_config().hidden_size) * model.dtype.itemsize
    if has_room_for(calibration.device, needed):
        return calibration.device
    if available is not None and needed > available:
        raise BadInput(
            f"the hidden states of {samples} calibration samples of {seqlen} tokens take {gigabytes(needed)} of the "
            f"host's memory, and {gigabytes(available)} are available; use fewer (data.samples, data.seqlen)"
        )
    return torch.device("cpu")
