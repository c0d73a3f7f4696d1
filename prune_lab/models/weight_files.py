"""The files that hold a checkpoint's weights, and what their headers say; no weight is read.

Weights are safetensors files or, where there are none, those of ``torch.save`` (``pytorch_model.bin``), which are read
with ``weights_only=True``: such a file can name tensors and plain containers, and no code of it is ever run.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prune_lab.errors import BadInput
from prune_lab.models.folder import quantised, read_json

SINGLE = {"model.safetensors": False, "pytorch_model.bin": True}  # by name, whether it is pickled
_INDEX = ".index.json"
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5}\.\w+)")
_HARMLESS = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|rotary_emb\.(cos|sin)_cached|(attn|attention)\.(masked_)?bias)")
"""Buffers that older versions of transformers saved and newer ones compute."""


@dataclass(frozen=True)
class WeightFiles:
    """The files of one checkpoint.

    Attributes:
        folder: that holds them.
        files: all that are read.
        pickled: whether they are those of ``torch.save``.
        weight_map: by weight, the file that the index names; ``None`` without an index.
    """

    folder: Path
    files: tuple[Path, ...]
    pickled: bool
    weight_map: Mapping[str, str] | None = None

    def headers(self) -> dict[str, Tensor]:
        """Reads names, shapes and types of all weights, as tensors on the meta device.

        Raises:
            BadInput: a file is damaged or cut short, holds something other than weights, or contradicts the index.
        """
        found: dict[str, Tensor] = {}
        places: dict[str, str] = {}
        for file in self.files:
            for name, tensor in _header(file, self.pickled).items():
                if name in found:
                    raise self._bad(f"{name} is in {places[name]} and in {file.name}; copy the folder again")
                found[name], places[name] = tensor, file.name
        wrong = [name for name, file in (self.weight_map or {}).items() if places.get(name) != file]
        if wrong:
            raise self._bad(
                f"the index says that {some(wrong)} is in {(self.weight_map or {})[wrong[0]]}, which is not so; copy "
                "the folder again"
            )
        return {name: tensor for name, tensor in found.items() if not is_harmless(name)}

    def _bad(self, problem: str) -> BadInput:
        return BadInput(f"{{at}}.path={self.folder}: {problem}")


def find_weights(folder: Path) -> WeightFiles:
    """Finds the files that `transformers` would read.

    Raises:
        BadInput: there are none, some are missing, or it is not clear which count.
    """
    for name, pickled in SINGLE.items():
        single, index = folder / name, folder / f"{name}{_INDEX}"
        if single.is_file() and index.is_file():
            raise BadInput(
                f"{{at}}.path={folder}: there are {name} and {index.name}, and it is not clear which counts; move one "
                "of them away"
            )
        if single.is_file():
            return WeightFiles(folder, (single,), pickled)
        if index.is_file():
            return _sharded(folder, index.name, pickled)
    other = sorted(path.name for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))
    if other:
        raise BadInput(
            f"{{at}}.path={folder}: holds {some(other)}, and neither {' nor '.join(SINGLE)} nor an index of shards "
            f"(model.safetensors{_INDEX}); copy the folder again, with all of its files"
        )
    raise BadInput(
        f"{{at}}.path={folder}: there is no *.safetensors file, and no pytorch_model.bin; give a folder as "
        "save_pretrained writes it"
    )


def is_harmless(name: str) -> bool:
    """Whether a tensor is a buffer that is computed anew, whatever a checkpoint says."""
    return _HARMLESS.fullmatch(name) is not None


def some(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _sharded(folder: Path, index: str, pickled: bool) -> WeightFiles:
    weight_map = read_json(folder, index).get("weight_map")
    files: list[str] = []
    if not isinstance(weight_map, dict) or not weight_map:
        problem: str | None = f"{index} has no weight_map"
    elif not all(isinstance(file, str) and Path(file).name == file for file in weight_map.values()):
        problem = f"{index} names files outside the folder, or none"
    else:
        files = sorted(set(weight_map.values()))
        problem = _shard_problem(folder, index, files)
    if problem:
        raise BadInput(f"{{at}}.path={folder}: {problem}; copy the folder again")
    return WeightFiles(folder, tuple(folder / file for file in files), pickled, weight_map)


def _shard_problem(folder: Path, index: str, files: list[str]) -> str | None:
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        return f"{some(missing)} named in {index} is missing"
    sets = {found.groups() for file in files if (found := _SHARD.fullmatch(file))}
    beside = [path.name for path in sorted(folder.iterdir()) if path.name not in files]
    extra = [name for name in beside if (found := _SHARD.fullmatch(name)) and found.groups() in sets]
    return f"{some(extra)} belongs to the shards, and {index} does not name it" if extra else None


def _header(file: Path, pickled: bool) -> dict[str, Tensor]:
    read: Callable[[Path], dict[str, Tensor]] = _pickled_header if pickled else _safetensors_header
    try:
        found = read(file)
    except OSError as error:
        raise BadInput(f"{{at}}.path={file.parent}: {file.name} cannot be read ({error.strerror or error})") from error
    integers = [name for name, tensor in found.items() if not tensor.is_floating_point() and not is_harmless(name)]
    if integers:
        how = f"{file.name} holds numbers of 8 bits, or whole ones, for {some(integers)}"
        raise BadInput(f"{{at}}.path={file.parent}: {quantised(how)}")
    return found


def _safetensors_header(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    found: dict[str, Tensor] = {}
    try:
        with file.open("rb"), safe_open(file, "pt") as opened:  # the first tells why a file cannot be read
            for name in opened.keys():  # noqa: SIM118  # it is no mapping
                part = opened.get_slice(name)
                dtype = _FLOATS.get(part.get_dtype(), torch.uint8)
                found[name] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
    except (SafetensorError, RuntimeError, ValueError, OverflowError, TypeError) as error:
        raise BadInput(
            f"{{at}}.path={file.parent}: {file.name} is damaged: {_extent(file) or error}; copy the file again"
        ) from error
    return found


def _extent(file: Path) -> str | None:
    """How long a safetensors file is and should be; ``None`` where its length is not what is wrong."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or 8 + length > size:
            return f"it has {size} bytes, and its header alone {'8' if size < 8 else f'says {8 + length}'}"
        try:
            tensors = json.loads(opened.read(length))
            end = max(tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__")
            expected = 8 + length + int(end)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return "its header cannot be read"
    return None if expected == size else f"it has {size} bytes, and its header says {expected}"


def _pickled_header(file: Path) -> dict[str, Tensor]:
    at = f"{{at}}.path={file.parent}: {file.name}"
    try:
        with file.open("rb") as opened:
            zipped = opened.read(4) == b"PK\x03\x04"
        content = torch.load(file, map_location="meta", weights_only=True, mmap=zipped)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle may fail in any way
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code:
            raise BadInput(
                f"{at} asks for {code[1]} to be called, which weights never need; nothing of it was run. Use a "
                "checkpoint in safetensors from a source that you trust."
            ) from error
        raise BadInput(
            f"{at} is damaged or no checkpoint ({file.stat().st_size} bytes); copy the file again"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(each, Tensor) for each in content.values()):
        raise BadInput(f"{at} holds more than weights by name; save the state_dict alone, by save_pretrained(NEW_DIR)")
    return {str(name): tensor for name, tensor in content.items()}
