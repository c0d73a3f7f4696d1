"""Writes a checkpoint's weights into shards of another size or type, one shard in memory at a time.

Tensors are taken from file to file, so that nothing of them depends on a model class: what is not converted is the
same bit by bit.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from prune_lab.errors import BadInput, RunFailed
from prune_lab.models.weight_files import WeightFiles
from prune_lab.utils.files import write_json

INDEX = "model.safetensors.index.json"
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass
class Written:
    """What became of the weights.

    Attributes:
        files: names of the files.
        numbers: how many there are in all tensors.
        zeros: how many of them were zero.
        new_zeros: how many became zero by rounding.
        rounded: how many have another value now.
        largest: the largest relative change of a number that did not become zero.
        converted: whether any tensor has another type now.
        dtypes: how many numbers there are of each type, by its name.
    """

    files: list[str] = field(default_factory=list)
    numbers: int = 0
    zeros: int = 0
    new_zeros: int = 0
    rounded: int = 0
    largest: float = 0.0
    converted: bool = False
    dtypes: dict[str, int] = field(default_factory=dict)

    def told(self) -> list[str]:
        """What to say about it: zeros, and what rounding has changed."""
        kinds = " and ".join(sorted(self.dtypes))
        lines = [f"{self.numbers:,} numbers, {kinds}; {self.zeros:,} are zero ({self.zeros / self.numbers:.2%})"]
        if self.rounded:
            lines.append(
                f"{self.rounded:,} numbers were rounded ({self.rounded / self.numbers:.2%}), the largest relative "
                f"change is {self.largest:.2g}; every zero is still zero, and {self.new_zeros:,} small numbers became "
                "zero"
            )
        elif self.converted:
            lines.append("the conversion has rounded no number")
        return lines


def bytes_as(headers: Mapping[str, Tensor], dtype: torch.dtype | None) -> int:
    """Returns the bytes of all weights in a type; ``None``: in their own."""
    return sum(tensor.numel() * (dtype or tensor.dtype).itemsize for tensor in headers.values())


def write_weights(source: WeightFiles, target: Path, dtype: torch.dtype | None, shard_bytes: int) -> Written:
    """Writes the weights, opens the files again, and compares every number.

    Args:
        source: the files.
        target: an empty folder.
        dtype: of what is written; ``None``: each tensor's own.
        shard_bytes: the most bytes of a file; a tensor that is larger has one of its own.

    Raises:
        BadInput: a number is beyond the range of the type.
        RunFailed: a file does not read as it was written.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    headers = source.headers()
    wanted = {name: tensor.to(dtype or tensor.dtype) for name, tensor in headers.items()}
    split = split_torch_state_dict_into_shards(
        wanted, filename_pattern="model{suffix}.safetensors", max_shard_size=shard_bytes
    )
    written = Written(sorted(split.filename_to_tensors))
    with reading(source) as read:
        for file, names in split.filename_to_tensors.items():
            tensors = {}
            for name in names:
                before = read(name)
                tensors[name] = before.to(wanted[name].dtype)
                _count(written, name, before, tensors[name])
            save_file(tensors, target / file, metadata={"format": "pt"})
            _compare(target / file, tensors)
    if split.is_sharded:
        write_json(target / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
    return written


@contextmanager
def reading(source: WeightFiles) -> Iterator[Callable[[str], Tensor]]:
    """Gives what reads a tensor by its name, whichever file holds it."""
    from safetensors import safe_open

    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, "pt")) for file in source.files]
        holder = {name: file for file in opened for name in file.keys()}  # noqa: SIM118  # it is no mapping
        yield lambda name: holder[name].get_tensor(name)


def _count(written: Written, name: str, before: Tensor, after: Tensor) -> None:
    """Adds what the conversion of a tensor has changed.

    Raises:
        BadInput: a number became infinite.
    """
    kind = str(after.dtype).removeprefix("torch.")
    if beyond := int((after.isinf() & ~before.isinf()).count_nonzero()):
        raise BadInput(
            f"--dtype {kind}: {beyond:,} numbers of {name} are beyond the range of {kind}; give "
            "bfloat16 or float32, which hold them"
        )
    written.numbers += before.numel()
    written.dtypes[kind] = written.dtypes.get(kind, 0) + before.numel()
    zeros = before.numel() - int(before.count_nonzero())
    written.zeros += zeros
    if before.dtype == after.dtype or not before.numel():
        return
    written.converted = True
    wide = torch.promote_types(before.dtype, after.dtype)
    wide = torch.promote_types(wide, torch.float32)  # neither bfloat16 nor float16 holds the other
    old, new = before.to(wide), after.to(wide)
    written.new_zeros += before.numel() - int(after.count_nonzero()) - zeros
    written.rounded += int((old != new).count_nonzero())
    change = ((new - old).abs() / old.abs())[(old != new) & (new != 0)]
    if change.numel():
        written.largest = max(written.largest, float(change.max()))


def _compare(file: Path, expected: Mapping[str, Tensor]) -> None:
    """Opens a file and compares it bit by bit with what was to be in it."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        same = set(opened.keys()) == set(expected) and all(
            _same_bits(opened.get_tensor(name), tensor) for name, tensor in expected.items()
        )
    if not same:
        raise RunFailed(f"{file.name} does not read as it was written; look at the disk, and export again")


def _same_bits(one: Tensor, other: Tensor) -> bool:
    bits = _BITS[other.dtype.itemsize]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one.view(bits), other.view(bits))
