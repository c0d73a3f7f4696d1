"""Nested values with divided tensors in them, in files: each process writes its parts, any number of them reads them.

The parts are written by torch.distributed.checkpoint, as safetensors, which hold numbers and no code; its own format is
a pickle.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, empty

_DIVIDED = "divided tensor"


def save_shards(values: Any, folder: Path) -> Any:
    """Writes this process' part of all divided tensors, with all processes at once.

    Args:
        values: dictionaries, lists and tuples of plain values, tensors and divided tensors, alike in all processes.
        folder: an empty one, or a new one.

    Returns:
        The values with the names and shapes of tensors in the place of those that were divided.

    Raises:
        Exception: whatever a process could not write, in all of them.
    """
    tensors: dict[str, Tensor] = {}
    left = _without(values, tensors)
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer)
    except CheckpointException as error:  # no `Exception`
        raise _first(error) from error
    return left


def load_shards(values: Any, folder: Path, mesh: DeviceMesh) -> Any:
    """Reads what `save_shards` wrote, with all processes at once; there may be more or fewer than there were.

    Args:
        values: that it returned.
        folder: likewise.
        mesh: the processes now.

    Raises:
        ValueError: parts are missing or do not fit.
        Exception: whatever else a process could not read, in all of them.
    """
    wanted = dict(_divided_in(values))
    try:
        found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        for name, shape in wanted.items():
            _check_whole(name, shape, found.get(name))
        tensors = {
            name: empty(*shape, dtype=_type_of(found[name]), device_mesh=mesh, placements=[Shard(0)])
            for name, shape in wanted.items()
        }
        load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)))
    except CheckpointException as error:
        raise _first(error) from error
    return _with(values, tensors)


def _check_whole(name: str, shape: tuple[int, ...], found: Any) -> None:
    """What is missing would be left as the memory was."""
    parts = found.chunks if isinstance(found, TensorStorageMetadata) else ()
    if sum(math.prod(part.sizes) for part in parts) != math.prod(shape) or tuple(found.size) != shape:
        raise ValueError(f"parts of tensor {name} are missing, or too many")


def _type_of(found: Any) -> torch.dtype:
    kind: torch.dtype = found.properties.dtype
    return kind


def _first(error: CheckpointException) -> BaseException:
    """What went wrong in the first of the processes in which something did."""
    return next(iter(error.failures.values()))[0]


def _without(values: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(values, DTensor):
        name = str(len(tensors))
        tensors[name] = values.detach()
        return {_DIVIDED: [name, list(values.shape)]}
    if isinstance(values, Mapping):
        return {key: _without(each, tensors) for key, each in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(_without(each, tensors) for each in values)
    return values


def _divided_in(values: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors that were divided."""
    if isinstance(values, Mapping):
        if values.keys() == {_DIVIDED}:
            name, shape = values[_DIVIDED]
            return [(name, tuple(shape))]
        values = list(values.values())
    return [found for each in values for found in _divided_in(each)] if isinstance(values, list | tuple) else []


def _with(values: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(values, Mapping):
        if values.keys() == {_DIVIDED}:
            return tensors[values[_DIVIDED][0]]
        return {key: _with(each, tensors) for key, each in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(_with(each, tensors) for each in values)
    return values
