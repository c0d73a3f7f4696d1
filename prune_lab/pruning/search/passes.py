"""Forward passes that begin at any block of a model, from hidden states that were kept."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prune_lab.models.model import PrunableModel
from prune_lab.models.view import Block


@contextmanager
def beginning_at(model: PrunableModel, first: int, hidden: Tensor | None) -> Iterator[None]:
    """Inside, the blocks before the one at ``first`` do nothing, and it reads ``hidden``; all else is as ever.

    So embeddings, masks, final norm and head are the model's own, and the logits are the same to the bit as those of a
    whole pass, if ``hidden`` is what a whole pass has there.

    Args:
        model: whose forward passes are meant.
        first: an index of a block, or their number: then only norm and head are left.
        hidden: what the block before it returns, ``(samples, seqlen, hidden)``; unused where ``first`` is 0.
    """
    skipped = model.blocks[:first]
    for block in skipped:
        block.module.forward = partial(_skip, block, hidden if block is skipped[-1] else None)
    try:
        yield
    finally:
        for block in skipped:
            del block.module.forward


@contextmanager
def watching(model: PrunableModel, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Inside, ``see`` is shown what each block returns, by its index: ``(samples, seqlen, hidden)``."""
    handles = [
        block.module.register_forward_hook(
            lambda _module, _inputs, output, block=block: see(block.index, block.hidden(output))
        )
        for block in model.blocks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def last_hidden_states(model: PrunableModel, tokens: Tensor, batches: list[slice], device: torch.device) -> Tensor:
    """What the last block returns for all tokens, ``(samples, seqlen, hidden)`` on the host.

    Args:
        model: on ``device``.
        tokens: ``(samples, seqlen)`` int64, on the host.
        batches: which samples a pass takes.
        device: where the model is.
    """
    found: list[Tensor] = []

    def keep(index: int, hidden: Tensor) -> None:
        if index == len(model.blocks) - 1:
            found.append(hidden.detach().cpu())

    with watching(model, keep):
        for batch in batches:
            model.hf.base_model(tokens[batch].to(device), use_cache=False)
    return torch.cat(found)


def _skip(block: Block, hidden: Tensor | None, states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
    states = states if hidden is None else hidden
    return (states, None) if block.tuple_out else states
