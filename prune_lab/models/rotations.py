"""Matrices that rotate the residual stream between blocks, where no weight can take them in.

What is added between two blocks belongs to the stream itself, so that a model whose blocks are rotated each in its own
way multiplies the stream by a dense matrix before a block. Such a matrix is a module ``rotation`` of the block, or of
the last norm, that is behind the last block.

`add_rotations` is copied into the files of `prune_lab.models.classes`, with what it needs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

ROTATIONS = "rotations_before"
"""The key of a configuration that says before which blocks there is one; the last norm has the index behind theirs."""


def add_rotations(modules: Sequence[Any], places: Sequence[int], width: int) -> None:
    """Lets some modules multiply the residual stream by a matrix before they read it.

    Args:
        modules: all blocks, and the last norm.
        places: the indices of those that get a matrix, ascending; it is drawn, and to be loaded or written.
        width: of the stream.

    Raises:
        ValueError: an index is none, or stands twice, or is out of order.
    """
    if not set(places) <= set(range(len(modules))) or list(places) != sorted(set(places)):
        raise ValueError(f"rotations_before has {list(places)} for {len(modules) - 1} blocks")
    for place in places:
        modules[place].rotation = nn.Linear(width, width, bias=False)
        modules[place].register_forward_pre_hook(rotate_input)


def rotate_input(module: Any, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Multiplies the residual stream by the module's matrix; to be a hook before it."""
    return (module.rotation(inputs[0]), *inputs[1:])


@torch.no_grad()
def stream_as_read(module: nn.Module, states: Tensor) -> Tensor:
    """Returns the residual stream as a block or a norm reads it: what the block adds, it adds to that.

    Args:
        module: with a rotation or without, on the device of ``states``.
        states: ``(..., width)``, before it.
    """
    rotation = getattr(module, "rotation", None)
    return states if rotation is None else cast(nn.Linear, rotation)(states)


@contextmanager
def without_rotations(hf: nn.Module) -> Iterator[None]:
    """Lets a model leave the residual stream as it is, inside.

    Args:
        hf: with rotations or without.
    """
    given = {module: module.rotation for module in hf.modules() if hasattr(module, "rotation")}
    try:
        for module in given:
            module.rotation = nn.Identity()
        yield
    finally:
        for module, rotation in given.items():
            module.rotation = rotation
