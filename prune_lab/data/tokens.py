"""Cuts token sequences into calibration samples and evaluation windows, exactly as the pruning papers do."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase

from prune_lab.data.author import Author
from prune_lab.data.bos import Bos
from prune_lab.data.samples import Labelled, Samples
from prune_lab.errors import BadInput

PAPER_SEQLEN = 2048
"""Tokens in a window where neither the user nor a shorter model says otherwise."""

TOKENIZERS_OWN = Bos("text", None)
"""Texts begin as the tokenizer itself has it."""

MAX_DRAWS = 10_000
"""Documents drawn for one sample before the search for a long enough one is given up."""


@dataclass(frozen=True)
class Pair:
    """A prompt that a model is to complete, and what counts as right.

    Attributes:
        prompt: as text.
        tokens: of the prompt, with the token that starts a text.
        references: completions without blanks around them; at least one.
    """

    prompt: str
    tokens: list[int]
    references: list[str]


@dataclass
class Data:
    """What a run calibrates on and is measured on, as token ids.

    Attributes:
        calibration: ``(samples, seqlen)`` int64 on the host.
        evaluation: ``(windows, seqlen)`` int64 on the host; its seqlen may differ from the calibration's.
        batch_size: sequences per forward pass; None leaves the choice to whoever runs the model.
        protocol: how the tokens came about, as plain JSON: ``calibration``, ``evaluation``, ``tokenizer``, and
            ``pairs`` where there are any.
        evaluation_bytes: UTF-8 bytes of the text that the evaluation windows cover; None where not known.
        evaluation_tokens: tokens of the evaluation windows that stand for text, which one that begins a text does not;
            None: all.
        training: reads what there is to train on, and how it came about; None where there is nothing but the
            calibration samples.
        pairs: prompts to complete in an evaluation; None where the data has none.
        write: lets the model write what it is to write of the calibration samples, in place, and tells the protocol;
            None where there is nothing of the kind.
        labelled: the same samples with padding and labels, for encoders; None: tokens are predicted.
    """

    calibration: Tensor
    evaluation: Tensor
    batch_size: int | None
    protocol: dict[str, object]
    evaluation_bytes: int | None = None
    evaluation_tokens: int | None = None
    training: Callable[[], tuple[Samples, dict[str, object]]] | None = None
    pairs: list[Pair] | None = None
    write: Callable[[Author], None] | None = None
    labelled: Labelled | None = None


def window_length(seqlen: int | None, seqlen_limit: int, most: int = PAPER_SEQLEN) -> int:
    """Tokens per window: ``seqlen``, or without one ``most`` as far as the model reaches.

    Raises:
        BadInput: if ``seqlen`` is more than ``seqlen_limit``, the positions of the model.
    """
    if seqlen is None:
        return min(seqlen_limit, most)
    if seqlen > seqlen_limit:
        raise BadInput(
            f"data.seqlen={seqlen} is more than the {seqlen_limit} positions of the model; "
            f"use data.seqlen={seqlen_limit} or less (null: the model's, at most {most})"
        )
    return seqlen


def encode(tokenizer: PreTrainedTokenizerBase, text: str, what: str, bos: Bos = TOKENIZERS_OWN) -> BatchEncoding:
    """Tokenises a whole text at once, without truncation, by default with the special tokens that the tokenizer adds.

    OPT's tokenizer, for example, puts one ``</s>`` before the text. The notice that the text is longer than the model
    allows is switched off: the tokens are cut into windows later.

    Long texts: `prune_lab.data.tokenised`.

    Args:
        tokenizer: the model's tokenizer.
        text: any text.
        what: the key that gave the text, for the message.
        bos: where the token that begins a text stands.

    Raises:
        BadInput: if the text holds half of a surrogate pair (JSON can spell one).
    """
    _check_encodable(text, what)
    options = {"truncation": False, "padding": False, "return_attention_mask": False, "verbose": False}
    encoding: BatchEncoding = tokenizer(text, add_special_tokens=bos.by_tokenizer, **options)
    return encoding


def encode_parts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], what: str) -> list[list[int]]:
    """Tokenises parts of texts, each by itself, without any special token and without truncation.

    Args:
        tokenizer: the model's tokenizer.
        texts: any texts.
        what: the key that gave them, for the message.

    Raises:
        BadInput: if a text holds half of a surrogate pair.
    """
    for text in texts:
        _check_encodable(text, what)
    if not texts:
        return []
    options = {"truncation": False, "padding": False, "return_attention_mask": False, "verbose": False}
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, **options)["input_ids"]
    return ids


def _check_encodable(text: str, what: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        character = repr(text[error.start])
        raise BadInput(f"{what}: the text holds {character}, half of a surrogate pair; remove it") from error


def tokenizer_protocol(tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    """Which tokenizer it is, as plain JSON."""
    name = tokenizer.name_or_path
    folder = Path(name)
    return {
        "name": folder.name if folder.is_dir() else name,  # where a folder lies says nothing to somebody else
        "class": type(tokenizer).__name__,
        "vocab_size": len(tokenizer),
    }


def evaluation_windows(
    tokens: np.ndarray, seqlen: int, limit: int | None, what: str, bos: Bos = TOKENIZERS_OWN
) -> np.ndarray:
    """Cuts tokens into neighbouring windows that do not overlap, and drops what is left over.

    Args:
        tokens: ``(n,)`` int64.
        seqlen: tokens per window.
        limit: at most so many windows, from the start; None for all.
        what: the key that gave the text, for the message.
        bos: ``window`` gives each window the token as its first, and one token less of the text.

    Returns:
        ``(windows, seqlen)`` int64.

    Raises:
        BadInput: if there are not enough tokens for one window.

    Source: ``opt_eval`` and ``llama_eval`` of SparseGPT, ``eval_ppl`` of Wanda.
    """
    width = seqlen - bos.room
    if len(tokens) < width:
        raise BadInput(
            f"{what}: the text has {len(tokens)} tokens, fewer than one window of data.seqlen={seqlen}; "
            f"give a longer text or use data.seqlen={max(len(tokens) + bos.room, 2)} or less"
        )
    windows = tokens[: len(tokens) // width * width].reshape(-1, width)
    return bos.lead(windows[:limit])


def sample_stream(
    tokens: np.ndarray, seqlen: int, samples: int, seed: int, what: str, bos: Bos = TOKENIZERS_OWN
) -> np.ndarray:
    """Draws random windows, with replacement, from one stream of tokens.

    Args:
        tokens: ``(n,)`` int64, ``n`` above ``seqlen``.
        seqlen: tokens per sample.
        samples: how many.
        seed: of the random numbers.
        what: the key that gave the text, for the message.
        bos: ``window`` gives each sample the token as its first, and one token less of the text.

    Returns:
        ``(samples, seqlen)`` int64.

    Raises:
        BadInput: if there are not more than ``seqlen`` tokens.

    Source: ``get_wikitext2`` and ``get_ptb`` of SparseGPT and Wanda, with the same random numbers: like theirs, it
    never draws the very last window.
    """
    width = seqlen - bos.room
    if len(tokens) <= width:
        raise BadInput(
            f"{what}: the text has {len(tokens)} tokens; random windows of data.seqlen={seqlen} need at least "
            f"{width + 1}; give a longer text or use data.seqlen={max(len(tokens) - 1 + bos.room, 2)} or less"
        )
    generator = random.Random(seed)
    starts = [generator.randint(0, len(tokens) - width - 1) for _ in range(samples)]
    return bos.lead(np.stack([tokens[start : start + width] for start in starts]))


def sample_documents(
    documents: Sequence[str],
    encode_document: Callable[[str], Sequence[int]],
    seqlen: int,
    samples: int,
    seed: int,
    what: str,
    bos: Bos = TOKENIZERS_OWN,
) -> np.ndarray:
    """Draws random documents until one has more than ``seqlen`` tokens, and a random window of it, for each sample.

    Args:
        documents: the texts; only those that are drawn are tokenised.
        encode_document: turns a text into its token ids.
        seqlen: tokens per sample.
        samples: how many.
        seed: of the random numbers.
        what: the key that gave the text, for the message.
        bos: ``window`` gives each sample the token as its first, and one token less of the text.

    Returns:
        ``(samples, seqlen)`` int64.

    Raises:
        BadInput: if ``MAX_DRAWS`` draws for one sample found no document that is long enough.

    Source: ``get_c4`` of Wanda and SparseGPT, with the same random numbers.
    """
    generator = random.Random(seed)
    width = seqlen - bos.room
    lengths: dict[int, int] = {}  # of the documents drawn so far: a short one that comes again is not tokenised again

    def draw() -> np.ndarray:
        for _ in range(MAX_DRAWS):
            index = generator.randint(0, len(documents) - 1)
            if lengths.get(index, width + 1) <= width:
                continue
            tokens = encode_document(documents[index])
            lengths[index] = len(tokens)
            if len(tokens) > width:
                start = generator.randint(0, len(tokens) - width - 1)
                return np.asarray(tokens[start : start + width], dtype=np.int64)
        longest = max(lengths.values())
        asked = f"data.seqlen={seqlen}" + " - 1" * bos.room
        raise BadInput(
            f"{what}: none of {MAX_DRAWS} random documents has more than {asked} tokens (the longest has {longest}); "
            "use a smaller data.seqlen, or data.sampling=stream to sample from the joined documents"
        )

    return bos.lead(np.stack([draw() for _ in range(samples)]))


def check_vocabulary(windows: np.ndarray, vocab_size: int, what: str) -> None:
    """Checks that every id is one of the model's.

    Args:
        windows: ``(rows, seqlen)``, any integer type.
        vocab_size: rows of the model's embedding.
        what: the key that gave the tokens, for the message.

    Raises:
        BadInput: if an id is below 0 or not below ``vocab_size``.
    """
    wrong = (windows < 0) | (windows >= vocab_size)
    if wrong.any():
        row, column = (int(index) for index in np.argwhere(wrong)[0])
        raise BadInput(
            f"{what}: token id {windows[row, column]} at row {row}, position {column} is outside the vocabulary of the "
            f"model, which has ids 0 to {vocab_size - 1}; the tokens must come from this model's tokenizer"
        )


def token_digest(windows: np.ndarray) -> str:
    """SHA-256, in hex, of the ids as little-endian int64 in row order: equal digests are equal tokens."""
    return hashlib.sha256(np.ascontiguousarray(windows, dtype="<i8").tobytes()).hexdigest()


def host_tensor(windows: np.ndarray) -> Tensor:
    """A copy of the ids as an int64 tensor on the host."""
    return torch.from_numpy(np.array(windows, dtype=np.int64))
