"""Computes with a model larger than a GPU: on several GPUs of the host, or with weights that come from the host."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prune_lab.utils.device import free_memory
from prune_lab.utils.memory import gigabytes
from prune_lab.utils.processes import processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_FOR_WEIGHTS = 0.8
"""The share of a GPU's free memory that weights may take; the rest is for what is computed."""


def fits(hf: nn.Module, device: torch.device) -> bool:
    """Whether the weights leave room on a device; a CPU has them already."""
    return device.type != "cuda" or size_of(hf) <= _FOR_WEIGHTS * free_memory(device)


def size_of(hf: nn.Module) -> int:
    """Bytes of the parameters and buffers, those that share memory counted once."""
    tensors = {(each.data_ptr(), each.dtype, each.shape): each for each in (*hf.parameters(), *hf.buffers())}
    return sum(each.nbytes for each in tensors.values())


@contextmanager
def spread(hf: "PreTrainedModel", blocks: Sequence[nn.Module], device: torch.device) -> "Iterator[PreTrainedModel]":
    """The model with as many of its blocks on GPUs as fit, ``device`` first; the others come there when they compute.

    That is accelerate's work (``dispatch_model``). In one of several processes only its own GPU is used. It computes
    the same as on one device, for inputs on ``device``; nothing can be trained, and no weight may be changed.
    Afterwards the model is on the host as before, with the same parameters: what lay in files still does.

    Args:
        hf: on the host.
        blocks: its blocks, in their order; all else is on ``device``.
        device: a GPU.
    """
    from accelerate import dispatch_model
    from accelerate.hooks import remove_hook_from_submodules

    places = _places(hf, blocks, {each: int(_FOR_WEIGHTS * free_memory(each)) for each in _gpus(device)})
    kept, attributes = _tensors(hf), {module: set(module.__dict__) for module in hf.modules()}
    try:
        with _quiet(logging.getLogger("accelerate.big_modeling")):  # which warns of weights that are somewhere else
            dispatch_model(hf, places, main_device=device.index, force_hooks=True)
        yield hf
    finally:
        _put_back(kept)  # accelerate looks for weights where they were, and does not find those that were tied
        remove_hook_from_submodules(hf)
        _put_back(kept)
        for module, known in attributes.items():  # `forward` as an attribute, which a copy of the model would share
            for name in set(module.__dict__) - known:
                delattr(module, name)


def _gpus(device: torch.device) -> Sequence[torch.device]:
    others = range(torch.cuda.device_count()) if processes().count == 1 else ()
    return [device, *(torch.device("cuda", index) for index in others if index != device.index)]


def _tensors(hf: nn.Module) -> list[tuple[dict[str, Any], str, Tensor, Tensor]]:
    """Where every tensor hangs, and its values, to be put back."""
    owners = [owner for module in hf.modules() for owner in (module._parameters, module._buffers)]
    return [
        (owner, name, tensor, tensor.data) for owner in owners for name, tensor in owner.items() if tensor is not None
    ]


@contextmanager
def _quiet(other: logging.Logger) -> Iterator[None]:
    level = other.level
    other.setLevel(logging.ERROR)
    try:
        yield
    finally:
        other.setLevel(level)


def _put_back(kept: Sequence[tuple[dict[str, Any], str, Tensor, Tensor]]) -> None:
    for owner, name, tensor, data in kept:
        tensor.data = data
        owner[name] = tensor


def _places(hf: nn.Module, blocks: Sequence[nn.Module], room: dict[torch.device, int]) -> dict[str, int | str]:
    """Where each block is computed, and whatever belongs to none, as accelerate's ``device_map``."""
    first, names = next(iter(room)), {module: name for name, module in hf.named_modules()}
    inside = {each for block in blocks for each in block.modules()}
    places: dict[str, int | str] = {
        name: first.index
        for module, name in names.items()
        if module not in inside and (module._parameters or module._buffers)
    }
    room[first] -= size_of(hf) - sum(size_of(block) for block in blocks)
    away = sum(size_of(block) for block in blocks) > sum(max(0, each) for each in room.values())
    if away:
        room[first] -= max(size_of(block) for block in blocks)  # for the one that comes from the host
    left = iter(room.items())
    place, free = next(left)
    for block in blocks:
        size = size_of(block)
        while free < size and (following := next(left, None)):
            place, free = following
        places[names[block]] = place.index if free >= size else "cpu"
        free -= size
    _tell(hf, places, len(blocks))
    return places


def _tell(hf: nn.Module, places: dict[str, int | str], blocks: int) -> None:
    away, gpus = sum(each == "cpu" for each in places.values()), len(set(places.values()) - {"cpu"})
    logger.info(
        "the model's %s do not fit on one GPU: it is spread over %d, and %d of %d blocks come from the host when they "
        "compute",
        gigabytes(size_of(hf)), gpus, away, blocks,
    )  # fmt: skip
