"""The file of masks in a run folder."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from prune_lab.pruning.masks import Masks
from prune_lab.utils.files import write_atomically

_TYPES = {torch.bool: "BOOL", torch.int64: "I64"}  # as safetensors call them


def save_masks(masks: Masks, orders: Mapping[str, Tensor], path: Path) -> None:
    """Writes masks, a bool tensor each, ``True`` = kept.

    Args:
        masks: by the names of layers or units.
        orders: of channels for which an N:M pattern holds, by layer, (in,) int64; written as ``<layer>.order``.
        path: of the file.
    """
    write_atomically(path, partial(_write, masks, orders))


def _write(masks: Masks, orders: Mapping[str, Tensor], path: Path) -> None:
    """Writes one tensor after the other, as a model's masks at a byte a weight may not fit into memory."""
    # What has eight bytes an entry comes first, where it lies as it should.
    tensors: dict[str, Callable[[], Tensor]] = {f"{name}.order": order.contiguous for name, order in orders.items()}
    tensors |= {name: partial(masks.__getitem__, name) for name in masks}
    header: dict[str, object] = {"__metadata__": {"meaning": "True = kept"}}
    end = 0
    for name, read in tensors.items():
        tensor = read()
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for read in tensors.values():
            file.write(read().contiguous().numpy().data)
