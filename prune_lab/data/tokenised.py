"""Long texts as tokens: tokenised once for all runs, as that takes seconds."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from transformers import BatchEncoding, PreTrainedTokenizerBase

from prune_lab.data.tokens import encode
from prune_lab.digests import json_digest, text_digest, tokenizer_digest
from prune_lab.store import open_store

LONG = 2**18
"""Texts of at least so many characters are kept as tokens."""
_KEPT = "tokens.safetensors"


@dataclass(frozen=True)
class Tokenised:
    """A text as tokens.

    Attributes:
        text: as it was.
        sha256: of the text in UTF-8.
        ids: ``(n,)`` int64, with the special tokens that the tokenizer adds.
        ends: ``(n,)`` int64, the characters of the text up to the end of each token; 0 for one that stands for no
            text. ``None`` where the tokenizer does not say.
    """

    text: str
    sha256: str
    ids: np.ndarray
    ends: np.ndarray | None

    def covered_bytes(self, kept: int) -> int | None:
        """UTF-8 bytes of the text up to the last of the first ``kept`` tokens; ``None`` if that is not known."""
        if kept == len(self.ids):
            return len(self.text.encode("utf-8"))
        return None if self.ends is None else len(self.text[: self.ends[:kept].max(initial=0)].encode("utf-8"))


def tokenise(tokenizer: PreTrainedTokenizerBase, text: str, what: str) -> Tokenised:
    """Tokenises a whole text as `encode` does, or takes the tokens from the store.

    Only for fast tokenizers, whose whole state can be told, is anything kept.

    Args:
        tokenizer: the model's.
        text: any.
        what: the key that gave it, for the message.

    Raises:
        BadInput: the text holds half of a surrogate pair.
    """
    sha256, make = text_digest(text), lambda: _arrays(encode(tokenizer, text, what))
    if len(text) < LONG or not tokenizer.is_fast:
        arrays = make()
    else:
        versions = {name: version(name) for name in ("tokenizers", "transformers")}
        key = json_digest({"text": sha256, "tokenizer": tokenizer_digest(tokenizer), "versions": versions})
        arrays = open_store().obtain(key, "text", read=_read, make=make, write=_write)
    return Tokenised(text, sha256, arrays["ids"], arrays.get("ends"))


def _arrays(encoding: BatchEncoding) -> dict[str, np.ndarray]:
    arrays = {"ids": np.asarray(encoding["input_ids"], dtype=np.int64)}
    if encoding.is_fast:
        arrays["ends"] = np.array([end for _, end in encoding.encodings[0].offsets], dtype=np.int64)
    return arrays


def _read(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / _KEPT)


def _write(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    save_file(arrays, folder / _KEPT)
