"""Digests of what results depend on."""

import hashlib
import json
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase


def json_digest(value: object) -> str:
    """The SHA-256 of a plain value in a canonical JSON form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def text_digest(text: str) -> str:
    """The SHA-256 of a text in UTF-8; halves of surrogate pairs count as what they are."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """The SHA-256 of a tensor on the host: type, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """The SHA-256 of what a tokenizer does to text: its whole state where it is a fast one, else its vocabulary."""
    state = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else tokenizer.get_vocab()
    return json_digest([state, {name: str(token) for name, token in tokenizer.special_tokens_map.items()}])


def folder_digest(folder: Path) -> str:
    """The SHA-256 of the names and contents of all files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
