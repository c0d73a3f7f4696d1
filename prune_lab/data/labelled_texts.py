"""Rows with labels as an encoder reads them: which columns count, what the classes are, tokens with padding."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prune_lab.data.documents import Row, shown_keys
from prune_lab.data.glue import LABELS, TEXTS
from prune_lab.data.samples import Samples
from prune_lab.data.tokens import check_vocabulary
from prune_lab.errors import BadInput, shown
from prune_lab.models.heads import Labels
from prune_lab.utils.digests import json_digest, tensor_digest

_NONE = ("", "None", "hidden")
_HIDDEN = "-1"  # in GLUE; elsewhere it may be a class, or a value
_MAX_CLASS_SHARE = 0.5  # more different labels a row are no classes


@dataclass(frozen=True)
class Text:
    """A row: where it stands, its texts, and its label as it is written."""

    where: str
    first: str
    second: str | None
    label: str


@dataclass(frozen=True)
class Columns:
    """Where texts and labels are, by the names of columns; ``None``: looked for among those that are usual.

    Attributes:
        text: of the text.
        pair: of a second one; with ``text`` given, ``None`` means that there is none.
        label: of the label.
        glue: whether the rows are of a task of GLUE.
    """

    text: str | None
    pair: str | None
    label: str | None
    glue: bool = False

    def read(self, row: Row) -> Text:
        """Takes texts and label out of a row.

        Raises:
            BadInput: it has none, or a label that is hidden.
        """
        first, second = (self.text, self.pair) if self.text else _usual(row)
        label = self.label or next((name for name in LABELS if name in row.values), None)
        if label is None or label not in row.values:
            raise BadInput(
                f"{row.where}: there is no column {label or ' or '.join(LABELS)} with a label; the columns are "
                f"{shown_keys(row.values)}; data.label names the one of the label, and test sets have none"
            )
        value = row.values[label]
        if str(value).strip() in (*_NONE, *((_HIDDEN,) if self.glue else ())):
            raise BadInput(
                f"{row.where}: the label is {shown(value)}, as in test sets whose labels are hidden; evaluate on the "
                "development set, or on a part of the training set that you set apart"
            )
        parts = [_string(row, name) for name in (first, second) if name is not None]
        return Text(row.where, parts[0], parts[1] if len(parts) > 1 else None, str(value).strip())


def names_of_classes(train: Sequence[Text]) -> tuple[str, ...]:
    """The labels of training rows in their order: by number where all are numbers, else by name.

    Raises:
        BadInput: there is one only, or nearly every row has one of its own.
    """
    found = {each.label for each in train}
    numbers = all(name.isdecimal() for name in found)
    names = tuple(sorted(found, key=(lambda name: (int(name), name)) if numbers else None))
    if len(names) < 2:
        raise BadInput(f"{{at}}.train: all rows have the label {shown(names[0])}, so there is nothing to learn")
    if len(names) > max(2, _MAX_CLASS_SHARE * len(train)):
        raise BadInput(
            f"{{at}}.train: {len(train)} rows have {len(names)} different labels, which are no classes; for values "
            "such as a similarity use data.values=true"
        )
    return names


def _usual(row: Row) -> tuple[str, str | None]:
    for first, second in TEXTS:
        if first in row.values and (second is None or second in row.values):
            return first, second
    known = "; or ".join(" and ".join(name for name in names if name) for names in TEXTS)
    raise BadInput(
        f"{row.where}: no column of a text is known; the columns are {shown_keys(row.values)}; known are {known}; "
        "data.text and data.pair name others"
    )


def _string(row: Row, column: str) -> str:
    value = row.values.get(column)
    if not isinstance(value, str):
        there = f"holds {shown(value):.40}" if column in row.values else "is not there"
        raise BadInput(
            f"{row.where}: the column {column!r} of a text {there}; the columns are {shown_keys(row.values)}"
        )
    return value


def _number(text: Text, labels: Labels) -> float:
    """The class of a row, or its value."""
    if labels.values:
        try:
            value = float(text.label)
        except ValueError:
            value = float("nan")
        if value != value or value in (float("inf"), -float("inf")):
            raise BadInput(f"{text.where}: the label is {shown(text.label)}, and not a finite number")
        return value
    if text.label in labels.names:
        return labels.names.index(text.label)
    if labels.numbered and text.label.isdecimal() and int(text.label) < len(labels.names):
        return int(text.label)
    raise BadInput(
        f"{text.where}: the label is {shown(text.label)}; the classes are {', '.join(labels.names)}; data.labels names "
        "them"
    )


def encode(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Text], labels: Labels, seqlen: int, vocab_size: int
) -> Samples:
    """Tokenises texts, and puts them side by side, padded at the end.

    Args:
        tokenizer: of the model; it has a token for padding.
        rows: at least one; all with a second text, or none.
        labels: what they are told apart by.
        seqlen: tokens at most; of what is longer, the end of the longer text is cut.
        vocab_size: of the model.

    Raises:
        BadInput: a label is none of these, or a token is none of the model's.
    """
    pairs = None if rows[0].second is None else [str(row.second) for row in rows]
    encoded = tokenizer(
        [row.first for row in rows], pairs, truncation=True, max_length=seqlen, padding=False, verbose=False
    )
    lengths = torch.tensor([len(ids) for ids in encoded["input_ids"]])
    tokens = _padded(encoded["input_ids"], int(lengths.max()), tokenizer.pad_token_id)
    check_vocabulary(np.concatenate([np.asarray(ids) for ids in encoded["input_ids"]])[None], vocab_size, "{at}.train")
    types = encoded.get("token_type_ids")
    numbers = [_number(row, labels) for row in rows]
    return Samples(
        tokens,
        lengths,
        labels=torch.tensor(numbers, dtype=torch.float32 if labels.values else torch.int64),
        types=None if types is None or pairs is None else _padded(types, tokens.shape[1], 0),
    )


def _padded(rows: Sequence[Sequence[int]], width: int, value: int) -> Tensor:
    padded = torch.full((len(rows), width), value, dtype=torch.int64)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = torch.tensor(row)
    return padded


def in_both(some: Samples, others: Samples) -> int:
    """How many different texts are among both."""
    return len(_texts(some) & _texts(others))


def _texts(samples: Samples) -> set[bytes]:
    assert samples.lengths is not None
    tokens = samples.tokens.to(torch.int32).numpy()
    return {row[:length].tobytes() for row, length in zip(tokens, samples.lengths.tolist(), strict=True)}


def told(samples: Samples) -> dict[str, object]:
    """What a protocol says of samples."""
    assert samples.lengths is not None and samples.labels is not None
    parts = [samples.tokens, samples.lengths, samples.labels]
    return {
        "samples": len(samples),
        "seqlen": samples.tokens.shape[1],
        "tokens": int(samples.lengths.sum()),
        "sha256": json_digest([tensor_digest(part) for part in parts]),
    }
