"""Runs a model with some of its blocks left out, or from a later block on.

The model's own forward pass is used, with all that it does before, between and after its blocks; only the blocks'
forward passes are replaced while a `PartialForward` is open.
"""

from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prune_lab.models.block import Block
from prune_lab.models.model import PrunableModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Part = tuple[int, int]
"""The index of a block, and 0 for its attention or 1 for its feed-forward network."""


def parts_of(blocks: Iterable[int]) -> set[Part]:
    """Both parts of some blocks."""
    return {(index, part) for index in blocks for part in range(2)}


class PartialForward:
    """Forward passes of a model with some parts of blocks adding nothing to the residual stream.

    A context manager: inside, the model is not to be used otherwise.

    Args:
        model: whose blocks are read.
        hf: it, on the device.
    """

    def __init__(self, model: PrunableModel, hf: "PreTrainedModel"):
        self._blocks, self._hf = model.blocks, hf
        self._off: Collection[Part] = frozenset()
        self._start = 0
        self._given: Tensor | None = None
        self._seen: list[Tensor] | None = None
        self._restore = ExitStack()

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return len(self._blocks)

    def __enter__(self) -> "PartialForward":
        for block in self._blocks:
            self._replace(block.module, partial(self._block, block, block.module.forward))
            for part, module in enumerate((block.attention.out.module, block.feed_forward.last)):
                self._replace(module, partial(self._last, (block.index, part), module.forward))
        return self

    def __exit__(self, *_: object) -> None:
        self._restore.close()

    def logits(
        self, tokens: Tensor, off: Collection[Part] = (), start: int = 0, hidden: Tensor | None = None
    ) -> Tensor:
        """The logits ``(samples, seqlen, vocab)``.

        Args:
            tokens: ``(samples, seqlen)`` int64, on the device.
            off: the parts that are left out.
            start: the first block that is run; the number of blocks: none is.
            hidden: that enters it, ``(samples, seqlen, width)``; by default, for block 0, the model's own.
        """
        self._off, self._start, self._given, self._seen = off, start, hidden, None
        logits: Tensor = self._hf(tokens, use_cache=False).logits
        return logits

    def hidden(
        self, tokens: Tensor, off: Collection[Part] = (), start: int = 0, hidden: Tensor | None = None
    ) -> list[Tensor]:
        """The hidden states that enter each block from ``start`` on, and at last what leaves the last one.

        Args:
            tokens: see `logits`.
            off: see `logits`.
            start: see `logits`.
            hidden: see `logits`.
        """
        self._off, self._start, self._given, self._seen = off, start, hidden, []
        self._hf.base_model(tokens, use_cache=False)
        seen, self._seen = self._seen, None
        return seen

    def traced(self, tokens: Tensor, off: Collection[Part] = ()) -> tuple[Tensor, list[Tensor]]:
        """The logits and the hidden states of one whole pass; see `logits` and `hidden`."""
        self._off, self._start, self._given, self._seen = off, 0, None, []
        logits: Tensor = self._hf(tokens, use_cache=False).logits
        seen, self._seen = self._seen, None
        return logits, seen

    def after(self, tokens: Tensor, off: Collection[Part], start: int, hidden: Tensor | None) -> Tensor:
        """The hidden state that leaves block ``start``; no later one is run."""
        rest = parts_of(range(start + 1, len(self._blocks)))
        return self.hidden(tokens, {*off, *rest}, start, hidden)[1]

    def _replace(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        before = module.__dict__.get("forward")  # of a model that is spread over devices
        module.forward = forward
        self._restore.callback(_put_back, module, before)

    def _block(self, block: Block, forward: Callable[..., Any], hidden: Tensor, /, *args: Any, **kwargs: Any) -> Any:
        index, last = block.index, block.index == len(self._blocks) - 1
        if self._given is not None and (index == self._start or (last and self._start > index)):
            hidden = self._given.to(hidden.device)
        if self._seen is not None and index >= self._start:
            self._seen.append(hidden)
        left_out = index < self._start or ((index, 0) in self._off and (index, 1) in self._off)
        out: Any = (hidden, None) if block.tuple_out else hidden
        if not left_out:
            out = forward(hidden, *args, **kwargs)
        if self._seen is not None and last:
            self._seen.append(block.hidden(out))
        return out

    def _last(self, part: Part, forward: Callable[..., Any], inputs: Tensor) -> Tensor:
        out: Tensor = forward(inputs)
        return torch.zeros_like(out) if part in self._off else out


def _put_back(module: nn.Module, forward: Callable[..., Any] | None) -> None:
    if forward is None:
        del module.forward
    else:
        module.forward = forward
