"""The text that the reference models are trained on, their tokenizer, and the stream of windows."""

from __future__ import annotations

import json
import logging
import lzma
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor

from prune_lab.data import stdlib

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
VOCABULARY = 8192
CONTEXT = 512
TOKENIZER_SHARDS = 4
STDLIB_REPEATS = 3

logger = logging.getLogger("train_reference")


def corpus_files(folder: Path, split: str) -> list[Path]:
    """Returns the files of one split of the corpus (`train`, `valid` or `test`)."""
    files = sorted(folder.glob("train-*.jsonl.xz" if split == "train" else f"{split}.jsonl.xz"))
    if not files:
        raise FileNotFoundError(f"no {split} files in {folder}")
    return files


def read_texts(files: Sequence[Path]) -> list[str]:
    """Returns the field `text` of every line of packed JSON-lines files."""
    texts = []
    for file in files:
        with lzma.open(file, "rt", encoding="utf-8") as lines:
            texts.extend(json.loads(line)["text"] for line in lines)
    return texts


def byte_count(texts: Sequence[str]) -> int:
    """Returns the length of the texts in bytes of UTF-8."""
    return sum(len(text.encode("utf-8")) for text in texts)


def stdlib_texts(split: stdlib.Split) -> list[str]:
    """Returns the texts of one split of the standard library's documentation."""
    return [document.text for document in stdlib.split(split)]


def train_tokenizer(texts: Sequence[str]) -> tokenizers.Tokenizer:
    """Trains a byte-level BPE tokenizer with a single special token."""
    tokenizer = tokenizers.Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


def token_stream(tokenizer: tokenizers.Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """Returns the texts as one stream of token ids with a separator before each and after the last."""
    pieces: list[np.ndarray] = []
    separator = np.array([END_OF_TEXT_ID], dtype=np.uint16)
    for start in range(0, len(texts), 256):
        for encoding in tokenizer.encode_batch_fast(list(texts[start : start + 256])):
            pieces += [separator, np.array(encoding.ids, dtype=np.uint16)]
    return np.concatenate([*pieces, separator])


def prepare(corpus: Path, cache: Path) -> tuple[tokenizers.Tokenizer, np.ndarray, dict[str, Any]]:
    """Returns the tokenizer, the training stream and an account of the data, from the cache where it holds them."""
    cache.mkdir(parents=True, exist_ok=True)
    tokenizer_file, stream_file, account_file = (cache / name for name in ("tokenizer.json", "train.npy", "data.json"))
    if account_file.exists():
        account = json.loads(account_file.read_text(encoding="utf-8"))
        return tokenizers.Tokenizer.from_file(str(tokenizer_file)), np.load(stream_file, mmap_mode="r"), account

    files = corpus_files(corpus, "train")
    library = stdlib_texts("train")
    sample = read_texts(files[:TOKENIZER_SHARDS])
    tokenizer = train_tokenizer([*sample, *library])
    texts = read_texts(files)
    stream = token_stream(tokenizer, [*texts, *library * STDLIB_REPEATS])
    account = {
        "corpus": {
            "files": [file.name for file in files],
            "documents": len(texts),
            "text_bytes": byte_count(texts),
        },
        "stdlib": {
            "split": "train",
            "documents": len(library),
            "text_bytes": byte_count(library),
            "repeats": STDLIB_REPEATS,
        },
        "tokenizer": {
            "corpus_files": [file.name for file in files[:TOKENIZER_SHARDS]],
            "stdlib_split": "train",
            "text_bytes": byte_count(sample) + byte_count(library),
            "vocabulary": tokenizer.get_vocab_size(),
        },
        "stream_tokens": len(stream),
    }
    tokenizer.save(str(tokenizer_file), pretty=False)
    np.save(stream_file, stream)
    account_file.write_text(json.dumps(account), encoding="utf-8")
    return tokenizer, stream, account


def windows(stream: np.ndarray, seed: int, first: int) -> Iterator[Tensor]:
    """Yields windows of 513 tokens (512 inputs and their successors) without end, each pass in a new shuffled order.

    Args:
        stream: the token stream.
        seed: seed of the order.
        first: number of windows to leave out, those that an interrupted run has already seen.
    """
    per_pass = (len(stream) - CONTEXT - 1) // CONTEXT
    while True:
        number, position = divmod(first, per_pass)
        generator = np.random.default_rng([seed, number])
        offset = int(generator.integers(CONTEXT))
        for index in generator.permutation(per_pass)[position:]:
            start = offset + int(index) * CONTEXT
            yield torch.from_numpy(stream[start : start + CONTEXT + 1].astype(np.int64))
        first += per_pass - position
