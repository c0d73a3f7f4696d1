"""Cuts a whole text into neighbouring windows, as the pruning papers do."""

import numpy as np
from transformers import PreTrainedTokenizerBase

from prune_lab.data.bos import Bos
from prune_lab.data.chats import as_texts
from prune_lab.data.limits import check_length
from prune_lab.data.sources import TextSource
from prune_lab.data.tokenised import TokenisedText
from prune_lab.data.tokens import evaluation_windows, token_digest
from prune_lab.errors import BadInput


def cut_text(
    source: TextSource, what: str, tokenizer: PreTrainedTokenizerBase, seqlen: int, limit: int | None, bos: Bos
) -> tuple[np.ndarray, dict[str, object], TokenisedText]:
    """Reads a whole text and cuts it into neighbouring windows.

    Args:
        source: of the text.
        what: it is, for messages: a key of the configuration.
        tokenizer: the model's.
        seqlen: tokens a window.
        limit: the first so many windows only; None for all.
        bos: where the token that begins a text stands.

    Returns:
        The windows, int64 ``(windows, seqlen)``; how they came about, as plain JSON; and the text.

    Raises:
        BadInput: the text cannot be read, is empty, or is shorter than a window.
    """
    documents = as_texts(source.read(), tokenizer, what)
    text = TokenisedText(tokenizer, joined(documents, source.join, what), what, bos)
    windows = evaluation_windows(text.ids, seqlen, limit, what, bos)
    protocol = source.describe() | {
        "documents": len(documents),
        "join": source.join,
        "text_sha256": text.sha256,
        "seqlen": seqlen,
        "windows": len(windows),
        "dropped_tokens": len(text.ids) - windows.size + len(windows) * bos.room,
        "sha256": token_digest(windows),
    }
    return windows, protocol, text


def joined(documents: list[str], join: str, what: str) -> str:
    """Joins documents to one text.

    Args:
        documents: to join.
        join: between two of them.
        what: they are, for messages.

    Raises:
        BadInput: there is nothing in them, or so much that it cannot be tokenised in memory.
    """
    check_not_empty(documents, what)
    check_length(sum(map(len, documents)) + len(join) * len(documents), what)
    return join.join(documents)


def check_not_empty(documents: list[str], what: str) -> None:
    """Raises `BadInput` where documents hold no text; see `joined`."""
    if not any(document.strip() for document in documents):
        raise BadInput(f"{what}: the text is empty ({len(documents)} documents); give a file with text in it")
