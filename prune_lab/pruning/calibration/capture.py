"""Finds the arguments that a model gives to each of its blocks, and what enters the first."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prune_lab.models.block import Block
from prune_lab.models.model import PrunableModel
from prune_lab.models.rotations import without_rotations
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.utils.products import fast_products


@dataclass
class Call:
    """The arguments a model gives to one block, besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def capture_block_inputs(
    model: PrunableModel, calibration: Calibration, place: torch.device
) -> tuple[Tensor, list[list[Call]]]:
    """The hidden states before block 0, held in ``place``, and the arguments the model gives to each block.

    They come from forward passes without the head in which every block does nothing, so they cost almost nothing.
    Block 0 cannot speak for the rest: blocks of one model may differ in their arguments.
    """
    device = calibration.device
    calls: list[list[Call]] = [[] for _ in model.blocks]
    hidden: list[Tensor] = []
    outside = _outside_blocks(model)
    for block, record in zip(model.blocks, calls, strict=True):
        block.module.forward = partial(_pass_through, block, record, hidden)
    try:
        for module in outside:
            module.to(device)
        states = None
        with without_rotations(model.hf), fast_products(model.dtype, device):
            for batch in calibration.batches():
                hidden.clear()
                model.hf.base_model(**calibration.inputs(batch), use_cache=False)
                if states is None:
                    states = _room((len(calibration.tokens), *hidden[0].shape[1:]), hidden[0].dtype, place, device)
                states[batch].copy_(hidden[0])
    finally:
        for block in model.blocks:
            del block.module.forward
        for module in outside:
            module.to("cpu")
    assert states is not None
    return states, calls


def _room(shape: tuple[int, ...], dtype: torch.dtype, place: torch.device, device: torch.device) -> Tensor:
    """An empty tensor; on the host in memory from which a GPU copies several times as fast, if the system has any."""
    if place.type == "cpu" and device.type == "cuda":
        with suppress(RuntimeError):
            return torch.empty(shape, dtype=dtype, pin_memory=True)
    return torch.empty(shape, dtype=dtype, device=place)


def _outside_blocks(model: PrunableModel) -> list[torch.nn.Module]:
    """The smallest modules of the base model that hold no block: embeddings, final norm, rotary tables."""
    blocks = {block.module for block in model.blocks}

    def holds_block(module: torch.nn.Module) -> bool:
        return any(child in blocks for child in module.modules())

    def visit(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
        for child in module.children():
            if child in blocks:
                continue
            if holds_block(child):
                yield from visit(child)
            else:
                yield child

    return list(visit(model.hf.base_model))


def _pass_through(
    block: Block, record: list[Call], hidden: list[Tensor], states: Tensor, *args: Any, **kwargs: Any
) -> Any:
    call = Call(args, kwargs)
    if record:  # one copy of what all batches have in common (masks, rotary tables), not one per batch
        call = Call(
            _same(args, record[0].args), {key: _same(value, record[0].kwargs[key]) for key, value in kwargs.items()}
        )
    record.append(call)
    if block.index == 0:
        hidden.append(states)
    return (states, None) if block.tuple_out else states


def _same(value: Any, first: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_same(a, b) for a, b in zip(value, first, strict=True))
    if (
        isinstance(value, Tensor)
        and isinstance(first, Tensor)
        and value.shape == first.shape
        and torch.equal(value, first)
    ):
        return first
    return value
