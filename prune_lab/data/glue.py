"""The tasks of GLUE: what their classes are called, where the hub has them, and tables as its authors hand them out."""

import csv
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from prune_lab.data.documents import CSV_SUFFIXES, JSON_SUFFIXES, PARQUET_SUFFIXES, Row, has_rows, read_rows
from prune_lab.data.packed import open_text
from prune_lab.errors import BadInput

logger = logging.getLogger(__name__)

REPO = "nyu-mll/glue"
TABLE = ".tsv"
KINDS = (TABLE, *JSON_SUFFIXES, *CSV_SUFFIXES, *PARQUET_SUFFIXES)
"""How names of files with labelled texts end."""

_ENTAILED = ("entailment", "not_entailment")


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        labels: the names of the classes, in the order of their numbers on the hub; none: labels are values.
        columns: of a table without a line of names.
    """

    labels: tuple[str, ...]
    columns: tuple[str, ...] | None = None


TASKS: Mapping[str, Task] = {
    "cola": Task(("unacceptable", "acceptable"), ("source", "label", "judgement", "sentence")),
    "mnli": Task(("entailment", "neutral", "contradiction")),
    "mrpc": Task(("not_equivalent", "equivalent")),
    "qnli": Task(_ENTAILED),
    "qqp": Task(("not_duplicate", "duplicate")),
    "rte": Task(_ENTAILED),
    "sst2": Task(("negative", "positive")),
    "stsb": Task(()),
    "wnli": Task(("not_entailment", "entailment")),
}

TEXTS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
    ("#1 String", "#2 String"), ("sentence", None), ("text", None),
)  # fmt: skip
"""The columns of texts and, of pairs, their second ones, by GLUE's own names and the hub's; the first that fit."""

LABELS = ("label", "gold_label", "is_duplicate", "Quality", "score")
"""Likewise, of labels."""


def split_name(task: str | None, *, training: bool, mismatched: bool) -> str:
    """What the hub calls the split to train on, or to evaluate on."""
    if training:
        return "train"
    return "validation" if task != "mnli" else f"validation_{'mis' if mismatched else ''}matched"


def copy_of(root: Path, split: str) -> Path | None:
    """The file of a folder that holds a split, by the hub's name or the authors'; ``None`` if there is none."""
    stems = (split, split.replace("validation", "dev"), f"{split}-00000-of-00001")
    found = (root / f"{stem}{kind}" for stem in dict.fromkeys(stems) for kind in KINDS)
    return next((path for path in found if path.is_file()), None)


def labelled_rows(path: Path, columns: tuple[str, ...] | None = None) -> Iterator[Row]:
    """Yields the rows of a file, in its order.

    Args:
        path: a table (``.tsv``: values between tabs, without quotes), or a file that `read_rows` takes.
        columns: of a table without a line of names.

    Raises:
        BadInput: it cannot be read.
    """
    if path.suffix.lower() == TABLE:
        yield from _table_rows(path, columns)
    elif has_rows(path):
        yield from read_rows(path)
    else:
        raise BadInput(f"{path}: files of this kind have no labels; allowed: {', '.join(KINDS)}")


def _table_rows(path: Path, columns: tuple[str, ...] | None) -> Iterator[Row]:
    """The rows of a table; QQP's has a few that are torn, which everyone leaves out."""
    torn = 0
    try:
        with open_text(path, newline="") as file:
            reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            names = columns or tuple(next(reader, ()))
            for values in reader:
                # MRPC's and STS-B's names are as many as their values; some tables have further values without a name
                if len(values) < len(names):
                    torn += bool(values)
                    continue
                yield Row(f"{path}, line {reader.line_num}", dict(zip(names, values, strict=False)))
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text: {error.reason}; convert it to UTF-8") from error
    except (OSError, csv.Error) as error:
        raise BadInput(f"{path} cannot be read: {error}") from error
    if torn:
        logger.warning("%s: %d lines have fewer values than columns and are left out", path, torn)
