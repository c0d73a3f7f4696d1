"""The file of masks in a run folder."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from prune_lab.pruning.masks import Masks
from prune_lab.utils.files import write_atomically


def save_masks(masks: Masks, orders: Mapping[str, Tensor], path: Path) -> None:
    """Writes masks, a bool tensor each, ``True`` = kept.

    Args:
        masks: by the names of layers or units.
        orders: of channels for which an N:M pattern holds, by layer, (in,) int64; written as ``<layer>.order``.
        path: of the file.
    """

    def write(temporary: Path) -> None:
        tensors = {name: mask.contiguous() for name, mask in masks.items()}
        tensors |= {f"{name}.order": order for name, order in orders.items()}
        save_file(tensors, temporary, metadata={"meaning": "True = kept"})

    write_atomically(path, write)
