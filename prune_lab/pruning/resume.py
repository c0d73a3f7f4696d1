"""Blocks that are pruned already, kept so that an interrupted pruning goes on at the next one."""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from prune_lab.models.adapter import Pair
from prune_lab.models.block import Block
from prune_lab.pruning.block_pruning import BlockPruning
from prune_lab.pruning.result import LayerRow, PruningResult
from prune_lab.utils.collectives import count, gather, hand_out, rank
from prune_lab.utils.disk import disk_failure
from prune_lab.utils.files import write_atomically

logger = logging.getLogger(__name__)

Found = tuple[dict[str, Tensor], Sequence[LayerRow], dict[str, Tensor], dict[str, Pair]]
"""The weights of a block by their names in it, the rows of its linear layers, the orders of their channels, and the
low-rank parts beside their weights."""


@dataclass
class FinishedBlocks:
    """A file for each block that is done: its weights, and what was measured of it.

    Blocks are written once their outputs are known, and no more often than every so many seconds, so that quick
    prunings write nothing. A file that belongs to other settings, or is damaged, counts as none.

    Args:
        folder: of the files.
        settings: that the blocks depend on, as text: method, target, data, and the model before it was pruned.
        every: seconds between two times of writing.
        release: lets go of what was read of a block for writing it; see `PrunableModel.release`.
    """

    folder: Path
    settings: str
    every: float
    release: Callable[[nn.Module], None] = lambda _: None
    _waiting: list[Block] = field(default_factory=list, init=False)
    _written: float = field(default_factory=time.monotonic, init=False)

    def restore(self, pruning: BlockPruning) -> bool:
        """Gives a block the weights it was left with, and its rows and channel orders to the result.

        Args:
            pruning: of the block, which is as it was before.

        Returns:
            Whether the block was done.
        """
        found = self._found(pruning.block)
        if found is None:
            return False
        pruning.restore(*found)
        logger.info("%s was pruned before the interruption", pruning.block.name)
        return True

    def note(self, block: Block) -> None:
        """Notes that a block is pruned; it is written by a later `settle`, by the first of several processes."""
        if rank() == 0:
            self._waiting.append(block)

    def settle(self, result: PruningResult) -> None:
        """Writes the blocks before, if it is time: their outputs are known, and their rows complete."""
        if not self._waiting or time.monotonic() - self._written < self.every:
            return
        for block in self._waiting:
            try:
                self._write(block, result)
                self.release(block.module)
            except Exception as error:
                self._give_up(error)
                break
        self._waiting.clear()
        self._written = time.monotonic()

    def keep(self, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Writes what a method found before the first block; blocks are of no use without it.

        Args:
            name: of the file.
            tensors: on the host, contiguous.
            notes: plain values beside them.
        """
        about = {"settings": self.settings, "notes": json.dumps(dict(notes))}
        try:
            write_atomically(self._beside(name), lambda path: save_file(dict(tensors), path, metadata=about))
        except Exception as error:
            self._give_up(error)

    def kept(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Reads what `keep` wrote; ``None`` if there is nothing that counts."""
        found = self._open(self._beside(name), "it is found again")
        return None if found is None else (found[0], json.loads(found[1]["notes"]))

    def _beside(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _give_up(self, error: Exception) -> None:
        """Writes nothing any more, where a disk is full; another error is raised."""
        failure = disk_failure(error)
        if failure is None:
            raise error
        logger.warning("finished blocks are not kept any more, the pruning goes on: %s", failure)
        self.every = math.inf

    def _open(self, path: Path, otherwise: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """The tensors and metadata of a file that belongs to these settings."""
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                if about.get("settings") != self.settings:
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118 - no mapping
        except FileNotFoundError:
            return None
        except Exception as error:  # safetensors has kinds of its own
            logger.warning("%s cannot be read, %s: %s", path, otherwise, error)
            return None

    def _found(self, block: Block) -> Found | None:
        """Reads a block; several processes get what the first one finds."""
        if count() == 1:
            return self._read(block)
        found = self._read(block) if rank() == 0 else None
        told = gather(found and found[1:])[0]
        if told is None:
            return None
        weights = {
            name: found[0][name] if found else torch.empty_like(tensor, device="cpu")
            for name, tensor in block.module.state_dict().items()
        }
        for weight in weights.values():
            hand_out(weight, 0)
        return weights, *told

    def _write(self, block: Block, result: PruningResult) -> None:
        rows = [result.layers[linear.name] for linear in block.linears if linear.name in result.layers]
        orders = {row.name: result.channel_orders[row.name] for row in rows if row.name in result.channel_orders}
        tensors = {f"weight {name}": tensor.contiguous() for name, tensor in block.module.state_dict().items()}
        tensors |= {f"order {name}": order.contiguous() for name, order in orders.items()}
        for row in rows:
            if pair := result.pairs.get(row.name):
                tensors |= {f"up {row.name}": pair.up.contiguous(), f"down {row.name}": pair.down.contiguous()}
        about = {"settings": self.settings, "rows": json.dumps([asdict(row) for row in rows])}
        write_atomically(self._path(block), lambda path: save_file(tensors, path, metadata=about))

    def _read(self, block: Block) -> Found | None:
        """Reads what is known of a block; ``None`` if there is no file that counts."""
        found = self._open(self._path(block), "the block is pruned again")
        if found is None:
            return None
        tensors, about = found
        rows = [LayerRow(**row | {"shape": tuple(row["shape"])}) for row in json.loads(about["rows"])]
        parts: dict[str, dict[str, Tensor]] = {"weight": {}, "order": {}, "up": {}, "down": {}}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(" ")
            parts[kind][rest] = tensor
        orders = {row.name: parts["order"][row.name] for row in rows if row.name in parts["order"]}
        with_parts = [row.name for row in rows if row.name in parts["up"]]
        pairs = {name: Pair(parts["up"][name], parts["down"][name]) for name in with_parts}
        return parts["weight"], rows, orders, pairs

    def _path(self, block: Block) -> Path:
        return self.folder / f"block_{block.index}.safetensors"
