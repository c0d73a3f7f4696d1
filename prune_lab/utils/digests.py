"""Digests of what results depend on."""

import contextlib
import hashlib
import json
import sys
import tempfile
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

_KNOWN = {"prune_lab", *sys.stdlib_module_names}  # the first by `cache.source.source_digest`, the others by versions
_INSTALLED = {"site-packages", "dist-packages"}
_TOLD = (  # of a tokenizer, beside its rules
    "chat_template", "add_bos_token", "add_eos_token", "clean_up_tokenization_spaces", "split_special_tokens",
    "padding_side", "truncation_side", "model_input_names",
)  # fmt: skip


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
    """The SHA-256 of what a tokenizer does to text and to conversations: rules, special tokens, chat template, code."""
    told = {name: getattr(tokenizer, name, None) for name in _TOLD}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    parts = [_rules(tokenizer), special, told, class_digest(type(tokenizer))]
    return json_digest(json.loads(json.dumps(parts, default=str)))


def _rules(tokenizer: PreTrainedTokenizerBase) -> object:
    """The whole state of a tokenizer in Rust; of another one its vocabulary and the files that it would save."""
    if tokenizer.is_fast:
        return tokenizer.backend_tokenizer.to_str()
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(NotImplementedError):  # then it has nothing but what is in its class
            tokenizer.save_vocabulary(folder)
        return [tokenizer.get_vocab(), folder_digest(Path(folder))]


def class_digest(kind: type) -> list[str]:
    """What tells a class from others: its name, and the code of it that is no part of an installed package.

    What a checkpoint brings along lies in a folder of ``transformers_modules``, whose files import each other.
    """
    told = [f"{kind.__module__}.{kind.__qualname__}"]
    for module in dict.fromkeys(base.__module__ for base in kind.__mro__):
        file, top = getattr(sys.modules.get(module), "__file__", None), module.partition(".")[0]
        if top == "transformers_modules" and file:
            told.append(folder_digest(Path(file).parent))
        elif top not in _KNOWN and file and not _INSTALLED.intersection(Path(file).parts):
            told.append(hashlib.sha256(Path(file).read_bytes()).hexdigest())
    return told


def folder_digest(folder: Path) -> str:
    """The SHA-256 of the names and contents of all files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
