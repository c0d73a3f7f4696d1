"""What a GGUF file says of itself before its weights: metadata, names, shapes and types of its tensors.

Everything that keeps a file from being loaded is told here, in a fraction of a second and before anything is written:
the readers of libraries build an array for every word of the vocabulary, and fail on a damaged file in many ways.
"""

import math
import mmap
import stat
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prune_lab.errors import BadInput
from prune_lab.utils.paths import local_path, shown_path, why_missing

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt2": "gpt2", "gemma3": "gemma3_text"}
"""By the name in a GGUF file, the ``model_type`` of families that transformers makes of it and that the lab knows."""

FORM = 1
"""Goes up with each change of what a converted folder holds."""

ABOUT = "gguf.json"
"""A file of that folder: what it was made of."""

ROPE_FACTORS = "rope_freqs.weight"
"""A tensor that is no weight: what each frequency of the positions is divided by, as in Llama 3.1."""

_VERSIONS = (2, 3)
_SIZES = (
    "embedding_length", "feed_forward_length", "vocab_size", "attention.head_count", "attention.head_count_kv",
    "attention.key_length", "rope.dimension_count",
)  # fmt: skip
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file.

    Attributes:
        shape: in the order of torch, the slowest dimension first.
        type: of its numbers: ``F32``, ``Q4_1`` ...
        start: of its bytes, from the beginning of the file.
        size: in bytes.
    """

    shape: tuple[int, ...]
    type: str
    start: int
    size: int


@dataclass(frozen=True)
class GgufHeader:
    """A file that is complete, of a family that the lab knows, and of types that can be brought back to numbers.

    Attributes:
        metadata: single values and texts by their keys; of a list its length.
        tensors: by name.
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """What the file calls the family."""
        return str(self.metadata["general.architecture"])

    @property
    def types(self) -> dict[str, int]:
        """How many tensors there are of each type, the most frequent first."""
        return dict(Counter(tensor.type for tensor in self.tensors.values()).most_common())

    @property
    def parameters(self) -> int:
        """How many numbers the file holds for the model."""
        return sum(math.prod(tensor.shape) for name, tensor in self.tensors.items() if name != ROPE_FACTORS)

    def of_family(self, key: str) -> Any:
        """A value of the metadata below the family's name, such as ``block_count``; ``None`` where there is none."""
        return self.metadata.get(f"{self.architecture}.{key}")


def gguf_file(path: str) -> Path:
    """Returns the file that a path names, ``~`` included.

    Raises:
        BadInput: there is none, or it is none.
    """
    file = local_path(path)
    try:
        is_file = stat.S_ISREG(file.stat().st_mode)
    except (OSError, ValueError) as error:
        raise BadInput(f"{{at}}.path={shown_path(path)}: {why_missing(path)}; give a GGUF file") from error
    if not is_file:
        hint = "; a folder in the Hugging Face format: model=local model.path=DIR" if file.is_dir() else ""
        raise BadInput(f"{{at}}.path={shown_path(path)}: is no file; give a GGUF file{hint}")
    return file


def read_header(file: Path) -> GgufHeader:
    """Reads all that stands before the weights, and checks that they can be loaded.

    Raises:
        BadInput: the file is none of GGUF, damaged or cut short, of an unknown family or an unknown type, or the
            package that knows the types is missing.
    """
    try:
        with file.open("rb") as opened:
            if opened.read(4) != b"GGUF":
                raise _Wrong("is no GGUF file: it does not begin with the letters GGUF; give one")
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                header = _read(content)
    except _Wrong as wrong:
        raise BadInput(f"{{at}}.path={file}: {wrong}") from wrong
    except OSError as error:
        raise BadInput(f"{{at}}.path={file}: cannot be read ({error.strerror or error})") from error
    return header


class _Wrong(Exception):
    """What is wrong with the file."""


class _Reader:
    """Reads values one after another, and nothing beyond the end of the file."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self.place = 4

    def number(self, form: str) -> Any:
        start = self.skip(struct.calcsize(form))
        return struct.unpack_from(form, self._content, start)[0]

    def text(self) -> str:
        start = self.skip(self.number("<Q"))
        try:
            return self._content[start : self.place].decode("utf-8")
        except UnicodeDecodeError as error:
            raise _Wrong(
                f"is damaged: a text of its metadata is not in UTF-8 ({error}); copy the file again"
            ) from error

    def value(self) -> Any:
        """A value of the metadata; of a list, which may be a vocabulary, its length."""
        kind = self.number("<I")
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_form(kind))
        kind, count = self.number("<I"), self.number("<Q")
        if kind == _STRING:
            for _ in range(count):
                self.skip(self.number("<Q"))
        else:
            self.skip(count * struct.calcsize(_form(kind)))
        return count

    def skip(self, size: int) -> int:
        """Goes on by some bytes, and returns where it was."""
        start = self.place
        if start + size > len(self._content):
            raise _Wrong(f"is cut short or damaged: it ends within its metadata, after {len(self._content)} bytes")
        self.place = start + size
        return start


def _form(kind: int) -> str:
    if kind not in _SCALARS:
        raise _Wrong(f"is damaged: its metadata has a value of the unknown kind {kind}; copy the file again")
    return _SCALARS[kind]


def _read(content: mmap.mmap) -> GgufHeader:
    reader = _Reader(content)
    version = reader.number("<I")
    if version not in _VERSIONS:
        raise _Wrong(f"is of version {version} of the format; versions that are read: 2, 3, of little-endian machines")
    count, keys = reader.number("<Q"), reader.number("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = reader.text()
        metadata[key] = reader.value()
    _check_family(metadata)
    entries = [_entry(reader) for _ in range(count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise _Wrong(f"is damaged: its metadata has general.alignment={alignment!r}; copy the file again")
    start = -(-reader.place // alignment) * alignment
    names = _type_names({kind for _, _, kind, _ in entries})
    tensors = {}
    for name, shape, kind, offset in entries:
        type_name, per_block, block_bytes = names[kind]
        if math.prod(shape) % per_block:
            raise _Wrong(f"is damaged: {name} has shape {shape}, and {type_name} packs {per_block} numbers together")
        tensors[name] = GgufTensor(shape, type_name, start + offset, math.prod(shape) // per_block * block_bytes)
    end = max((tensor.start + tensor.size for tensor in tensors.values()), default=0)
    if not tensors:
        raise _Wrong("holds no weights; give the file of a model")
    _check_sizes(metadata, tensors)
    if end > len(content):
        raise _Wrong(f"is cut short: it has {len(content)} bytes, and its header says {end}; copy the file again")
    return GgufHeader(metadata, tensors)


def _check_family(metadata: Mapping[str, Any]) -> None:
    family = metadata.get("general.architecture")
    if family not in ARCHITECTURES:
        raise _Wrong(
            f"the model's family is {family!r}, which is not read from GGUF files; families: "
            f"{', '.join(sorted(ARCHITECTURES))}. Give a Hugging Face folder of the model: model=local model.path=DIR"
        )
    if metadata.get("split.count") not in (None, 0, 1):
        raise _Wrong(
            f"is one of {metadata['split.count']} parts of a model; join them with llama-gguf-split --merge, and give "
            "the result"
        )
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise _Wrong(f"holds no language model but {kind!r} (general.type); give the file of a model")
    if metadata.get(f"{family}.expert_count"):
        raise _Wrong("is a mixture of experts, which are not supported; give a dense model")


def _check_sizes(metadata: Mapping[str, Any], tensors: Mapping[str, GgufTensor]) -> None:
    """Compares the sizes that are declared with the tensors, so that nothing is built in vain."""
    family = metadata["general.architecture"]
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blk.")}
    said = metadata.get(f"{family}.block_count")
    if said != len(blocks):
        raise _Wrong(f"its metadata says {family}.block_count={said}, and it has {len(blocks)} blocks; copy it again")
    largest = max(max(tensor.shape, default=0) for tensor in tensors.values())
    for key in _SIZES:
        size = metadata.get(f"{family}.{key}", 1)
        if type(size) is not int or not 1 <= size <= largest:
            raise _Wrong(
                f"its metadata says {family}.{key}={size!r}, and the largest dimension of a tensor is {largest}; copy "
                "the file again"
            )


def _entry(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, number of the type, and offset of a tensor."""
    name, dimensions = reader.text(), reader.number("<I")
    if dimensions > _MOST_DIMENSIONS:
        raise _Wrong(f"is damaged: {name} has {dimensions} dimensions; copy the file again")
    shape = tuple(reader.number("<Q") for _ in range(dimensions))[::-1]
    return name, shape, reader.number("<I"), reader.number("<Q")


def _type_names(kinds: set[int]) -> dict[int, tuple[str, int, int]]:
    """By its number, the name of a type, how many numbers it packs together, and in how many bytes."""
    try:
        import gguf
    except ImportError as error:
        raise _Wrong("GGUF files are read with the package gguf, which is not installed: pip install gguf") from error
    readable = {}
    for known, (per_block, block_bytes) in gguf.GGML_QUANT_SIZES.items():
        if _can_read(known, block_bytes):
            readable[int(known)] = (known.name, per_block, block_bytes)
    unknown = sorted(kinds - set(readable))
    if unknown:
        known_names = {int(each): each.name for each in gguf.GGMLQuantizationType}
        raise _Wrong(
            f"its weights are quantised as {known_names.get(unknown[0], f'number {unknown[0]}')}, which cannot be "
            f"brought back to numbers; types that can: {', '.join(name for name, _, _ in readable.values())}. Take "
            "another file of the model, in Q8_0 for example"
        )
    return readable


def _can_read(kind: Any, block_bytes: int) -> bool:
    import gguf
    import numpy as np

    try:
        gguf.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except NotImplementedError:
        return False
    return True
