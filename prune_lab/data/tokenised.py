"""Long texts as tokens: tokenised once for all runs, as that takes seconds."""

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import numpy as np
from safetensors.numpy import load_file, save_file
from transformers import BatchEncoding, PreTrainedTokenizerBase

from prune_lab.cache.store import open_store
from prune_lab.data.bos import Bos
from prune_lab.data.tokens import TOKENIZERS_OWN, encode
from prune_lab.utils.digests import json_digest, text_digest, tokenizer_digest
from prune_lab.utils.files import write_json

LONG = 2**18
"""Texts of at least so many characters are kept as tokens."""
T = TypeVar("T")

_IDS, _BYTES = "ids.safetensors", "bytes.json"


class TokenisedText:
    """A whole text as the tokens that `encode` makes of it, or that the store has.

    Only for fast tokenizers, whose whole state can be told, is anything kept.

    Attributes:
        text: as it was.
        sha256: of the text in UTF-8.
        ids: ``(n,)`` int64, with the special tokens that the tokenizer adds, if they are wanted.

    Args:
        tokenizer: the model's.
        text: any.
        what: the key that gave it, for the message.
        bos: where the token that begins a text stands.

    Raises:
        BadInput: the text holds half of a surrogate pair.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, what: str, bos: Bos = TOKENIZERS_OWN) -> None:
        self.text, self.sha256 = text, text_digest(text)
        self._tokenizer, self._what, self._bos = tokenizer, what, bos
        self._encoding: BatchEncoding | None = None
        self._known_as: dict[str, object] | None = None
        if len(text) >= LONG and tokenizer.is_fast:
            versions = {name: version(name) for name in ("tokenizers", "transformers")}
            self._known_as = {"text": self.sha256, "tokenizer": tokenizer_digest(tokenizer), "versions": versions}
            self._known_as |= {} if bos.by_tokenizer else {"special_tokens": False}
        self.ids = self._obtain({}, read=_read_ids, make=self._make_ids, write=_write_ids)

    def covered_bytes(self, kept: int) -> int | None:
        """UTF-8 bytes of the text up to the last of the first ``kept`` tokens; ``None`` if that is not known."""
        if kept == len(self.ids):
            return len(self.text.encode("utf-8"))
        if not self._tokenizer.is_fast:
            return None
        return self._obtain({"kept": kept}, read=_read_bytes, make=lambda: self._make_bytes(kept), write=_write_bytes)

    def _obtain(
        self,
        more: dict[str, object],
        *,
        read: Callable[[Path], T],
        make: Callable[[], T],
        write: Callable[[Path, T], None],
    ) -> T:
        if self._known_as is None:
            return make()
        return open_store().obtain(json_digest(self._known_as | more), "text", read=read, make=make, write=write)

    def _make_ids(self) -> np.ndarray:
        return np.asarray(self._encoded()["input_ids"], dtype=np.int64)

    def _make_bytes(self, kept: int) -> int:
        encoding = self._encoded()
        for index in range(kept - 1, -1, -1):
            span = encoding.token_to_chars(index)
            if span is not None:  # a special token stands for no text
                return len(self.text[: span.end].encode("utf-8"))
        return 0

    def _encoded(self) -> BatchEncoding:
        if self._encoding is None:
            self._encoding = encode(self._tokenizer, self.text, self._what, self._bos)
        return self._encoding


def _read_ids(folder: Path) -> np.ndarray:
    return load_file(folder / _IDS)["ids"]


def _write_ids(folder: Path, ids: np.ndarray) -> None:
    save_file({"ids": ids}, folder / _IDS)


def _read_bytes(folder: Path) -> int:
    return int(json.loads((folder / _BYTES).read_text(encoding="utf-8")))


def _write_bytes(folder: Path, count: int) -> None:
    write_json(folder / _BYTES, count)
