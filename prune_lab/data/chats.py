"""Conversations: lists of messages, which a tokenizer's chat template makes texts of."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from prune_lab.errors import BadInput

Chat = list[dict[str, Any]]
Document = str | Chat

_ROLES = {"human": "user", "gpt": "assistant"}


def as_document(value: object) -> Document | None:
    """Returns a text as it is, a list of messages as a conversation, and None for anything else.

    A message has ``role`` and ``content``, and whatever else the template reads (``reasoning_content``, say), or
    ``from`` and ``value``, as ShareGPT has them.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value or not all(isinstance(each, Mapping) for each in value):
        return None
    if all({"role", "content"} <= each.keys() for each in value):
        return [dict(each) for each in value]
    if all({"from", "value"} <= each.keys() for each in value):
        return [{"role": _ROLES.get(each["from"], each["from"]), "content": each["value"]} for each in value]
    return None


def length(document: Document) -> int:
    """Returns how many characters a document has, of a conversation those of its messages."""
    return len(document) if isinstance(document, str) else sum(len(str(each["content"])) for each in document)


def as_texts(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, what: str) -> list[str]:
    """Returns the documents as texts: conversations as the tokenizer's chat template writes them.

    The token that begins a text is left out where the template writes one: ``data.bos`` says where it stands.

    Args:
        documents: texts and conversations.
        tokenizer: the model's.
        what: the key that gave them, for messages.

    Raises:
        BadInput: there are conversations and no chat template, or it cannot write one of them.
    """
    if all(isinstance(each, str) for each in documents):
        return [each for each in documents if isinstance(each, str)]
    if not tokenizer.chat_template:
        raise BadInput(
            f"{what} has conversations, which a chat template makes texts of, and the model's tokenizer has none; give "
            "texts, or a model that was tuned to answer"
        )
    return [_written(each, tokenizer, f"{what}, document {number}") for number, each in enumerate(documents, start=1)]


def _written(document: Document, tokenizer: PreTrainedTokenizerBase, where: str) -> str:
    if isinstance(document, str):
        return document
    try:
        text = tokenizer.apply_chat_template(document, tokenize=False)
    except Exception as error:  # a template may fail in any way, and says in its own words what it does not take
        raise BadInput(f"{where}: the tokenizer's chat template cannot write it: {error}") from error
    assert isinstance(text, str)
    return text.removeprefix(tokenizer.bos_token) if isinstance(tokenizer.bos_token, str) else text
