"""The solved weights of each layer at a few levels, made in one walk over the dense model and kept in files.

Each block has files of its own, so that a walk that was interrupted goes on where it was. They hold what stays of a
weight and where, and are mapped into memory: what is not looked at need not be there.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from prune_lab.cache.store import Store
from prune_lab.errors import RunFailed
from prune_lab.models.identity import model_key, place_key
from prune_lab.models.model import PrunableModel
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.calibration.blocks import BlockInputs, iterate_blocks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.search.layers import Inner, Layer, solve
from prune_lab.pruning.target import Target
from prune_lab.utils.digests import json_digest, tensor_digest
from prune_lab.utils.disk import free_at
from prune_lab.utils.memory import gigabytes
from prune_lab.utils.text import duration

logger = logging.getLogger(__name__)

_FILE = "levels.safetensors"
_LINES = 5  # in the log, of a whole walk

Counts = Mapping[str, Sequence[int]]
"""By layer, how many of its entries go at each of its levels."""


@dataclass
class LevelDatabase:
    """The weights of layers by how many of their entries are gone; `make_levels` fills it."""

    _tensors: dict[str, Tensor] = field(default_factory=dict)

    def weight(self, linear: PrunableLinear, count: int) -> Tensor | None:
        """A solved weight, ``(out, in)`` in the type of the model; ``None`` for a level that is the dense weight."""
        bits = self._tensors.get(f"{linear.name} {count} kept")
        return None if bits is None else unpack(bits, self._tensors[f"{linear.name} {count} values"], linear.shape)

    def add(self, file: Path) -> None:
        """Maps a file of a block; nothing is read."""
        with safe_open(file, "pt") as opened:
            self._tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping


@torch.no_grad()
def make_levels(
    model: PrunableModel,
    calibration: Calibration,
    target: Target,
    inner: Inner,
    layers: Sequence[Layer],
    counts: Counts,
    keys: Mapping[int, str],
    *,
    store: Store | None = None,
    folder: Path | None = None,
) -> LevelDatabase:
    """Takes the blocks that are in the store, and solves and keeps the others; the model is left as it is.

    Args:
        model: dense.
        calibration: what statistics are collected of.
        target: what is pruned, but for how much.
        inner: solves each layer for each count.
        layers: all of the target.
        counts: of every layer.
        keys: of the blocks, by `level_keys`.
        store: where blocks are kept for later runs; ``None``: they are not.
        folder: for those that the store does not take; they are gone once the process has ended.
    """
    blocks = [block for block in model.blocks[: target.end(model)] if target.includes(block)]
    database, size = LevelDatabase(), _expected_bytes(layers, counts)
    if store is not None and size > store.limit / 2:
        logger.info(
            "levels of %s are not kept for other runs: the store may hold %s", *map(gigabytes, (size, store.limit))
        )
        store = None
    missing = [
        block for block in blocks if store is None or store.load(keys[block.index], _adding_to(database)) is None
    ]
    if not missing:
        logger.info("levels: all %d blocks are taken from an earlier run", len(blocks))
        return database
    if store is None:
        _check_room(size, folder)
    levels = max(len(each) for each in counts.values())
    logger.info(
        "levels: %d of %d blocks are to be solved, at up to %d levels a layer", len(missing), len(blocks), levels
    )
    start = time.perf_counter()
    numbers = {block.index: number for number, block in enumerate(missing, 1)}
    for block, inputs in iterate_blocks(model, calibration, missing[-1].index + 1):
        if block.index in numbers:
            own = [layer for layer in layers if layer.block == block.index]
            solved = _solve(inputs, inner, target, own, counts)
            _keep(solved, keys[block.index], database, store, folder)
            _say(numbers[block.index], len(missing), time.perf_counter() - start)
    return database


def _check_room(size: int, folder: Path | None) -> None:
    place = Path(tempfile.gettempdir()) if folder is None else folder
    free = free_at(place)
    if size > free:
        raise RunFailed(
            f"the levels of the search take {gigabytes(size)}, and {place} has {gigabytes(free)} left; make room "
            "there, or use fewer levels (allocation.max_levels)"
        )


def _solve(
    inputs: BlockInputs, inner: Inner, target: Target, layers: Sequence[Layer], counts: Counts
) -> dict[str, Tensor]:
    """The tensors of a block's file; a level at which nothing is removed that is not zero already is left out."""
    wanted = {layer.name: [count for count in counts[layer.name] if count > layer.zeros] for layer in layers}
    tensors = {}
    for solved in solve(inputs, inner, target, layers, wanted):
        bits, values = pack(solved.weight.to("cpu", solved.linear.weight.dtype))
        tensors[f"{solved.linear.name} {solved.count} kept"] = bits
        tensors[f"{solved.linear.name} {solved.count} values"] = values
    return tensors


def _keep(
    tensors: dict[str, Tensor], key: str, database: LevelDatabase, store: Store | None, folder: Path | None
) -> None:
    """Writes a block's file, and maps it; without a place in the store it loses its name at once."""
    if store is not None:
        size = sum(tensor.nbytes for tensor in tensors.values())
        store.keep(key, lambda into: save_file(tensors, into / _FILE), expected=size)
        if store.load(key, _adding_to(database)) is not None:
            return
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        save_file(tensors, Path(place) / _FILE)
        database.add(Path(place) / _FILE)


def _adding_to(database: LevelDatabase) -> Callable[[Path], bool]:
    def add(entry: Path) -> bool:
        database.add(entry / _FILE)
        return True

    return add


def level_keys(
    model: PrunableModel,
    calibration: Calibration,
    target: Target,
    about_inner: object,
    layers: Sequence[Layer],
    counts: Counts,
) -> dict[int, str]:
    """By block of the target, a digest of all that decides its levels: model, calibration, method, counts and code.

    Args:
        model: see `make_levels`.
        calibration: see there.
        target: see there.
        about_inner: name and settings of the method, as plain JSON.
        layers: see there.
        counts: see there.
    """
    common = [
        model_key(model),
        tensor_digest(calibration.tokens),
        [[batch.start, batch.stop] for batch in calibration.batches()],
        place_key(calibration.device),
        about_inner,
        target.keep_zeros,
    ]
    by_block: dict[int, dict[str, list[int]]] = {}
    for layer in layers:
        by_block.setdefault(layer.block, {})[layer.name] = list(counts[layer.name])
    return {block: json_digest([common, block, own]) for block, own in by_block.items()}


def _expected_bytes(layers: Sequence[Layer], counts: Counts) -> int:
    """Of all files, roughly."""
    size = 0.0
    for layer in layers:
        weight = layer.linear.weight
        for count in counts[layer.name]:
            size += (1 - count / layer.entries) * weight.nbytes + weight.numel() / 8
    return int(size)


def _say(number: int, count: int, seconds: float) -> None:
    if number % -(-count // _LINES) == 0 or number == count:
        left = f", {duration(seconds / number * (count - number))} left" if number < count else ""
        logger.info("levels: block %d of %d, %s%s", number, count, duration(seconds), left)


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Where a weight is not zero, a bit an entry in uint8, row by row; and what is there."""
    kept = weight != 0
    return torch.from_numpy(np.packbits(kept.numpy())), weight[kept]


def unpack(bits: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """The weight that was packed."""
    kept = torch.from_numpy(np.unpackbits(bits.numpy(), count=shape[0] * shape[1]).view(np.bool_)).view(shape)
    weight = torch.zeros(shape, dtype=values.dtype)
    weight[kept] = values
    return weight
