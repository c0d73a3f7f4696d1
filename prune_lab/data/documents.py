"""Reads rows and documents from text, JSON, CSV and parquet files, and says in which file and line a mistake is."""

import csv
import json
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prune_lab.data.chats import Document, as_document
from prune_lab.data.packed import UNPACKERS, open_text
from prune_lab.errors import BadInput, shown
from prune_lab.utils.extras import check_extra
from prune_lab.utils.paths import TooManyFiles, local_path, named_paths, shown_path, why_missing

if TYPE_CHECKING:
    from pyarrow import RecordBatch

TextRows = Literal["file", "stripped", "wikitext"]
"""What a document is in a text file.

``file``: the whole file. ``stripped``: each line, without blanks around it, as the hub has PTB. ``wikitext``: each line
with its blanks and its line end, but an empty string for a blank line, as the hub has WikiText.
"""

TEXT_SUFFIXES = (".txt", ".raw", ".tokens")
JSON_SUFFIXES = (".jsonl", ".json")
CSV_SUFFIXES = (".csv",)
PARQUET_SUFFIXES = (".parquet",)
ARROW_SUFFIXES = (".arrow",)
ALLOWED = f"{', '.join(TEXT_SUFFIXES + JSON_SUFFIXES + CSV_SUFFIXES)} (plain, .gz or .xz), .parquet and .arrow"


_MOST_KEYS, _MOST_SHOWN = 100, 300  # keys, and characters of them, in a message


@dataclass(frozen=True)
class Row:
    """One row of a file: ``where`` it stands, for messages, and its values by key or column."""

    where: str
    values: dict[str, object]


def find_files(path: str, key: str) -> list[Path]:
    """The files that ``path`` stands for, sorted by name: one file, the readable files of a folder, or a glob pattern.

    Args:
        path: of a file or a folder, or a pattern with ``*``, ``?``, ``[...]`` or ``**``; ``~`` is the home folder.
        key: that gave the path, for the message.

    Raises:
        BadInput: if there is no such file, or none of a kind that can be read, or there are too many.
    """
    where = f"{key}={shown_path(path)}"
    try:
        found = named_paths(path)
    except TooManyFiles as error:
        raise BadInput(f"{where}: {error}") from error
    if not found:
        raise BadInput(f"{where}: {why_missing(path, 'file or folder', pattern=True)}")
    if found == [local_path(path)]:
        if os.path.isdir(found[0]):
            found = _files_of_folder(found[0], where)
        elif not os.path.isfile(found[0]):
            raise BadInput(f"{where} is neither a file nor a folder")
        elif not is_readable_kind(found[0]):
            raise BadInput(f"{where}: files of this kind cannot be read; allowed are {ALLOWED}")
    files = [file for file in found if is_readable_kind(file) and os.path.isfile(file)]
    if not files:
        raise BadInput(f"{where}: no file there can be read; allowed are {ALLOWED}")
    return files


def _files_of_folder(folder: Path, where: str) -> list[Path]:
    """The files of a folder; those with rows alone of one that ``datasets`` has written."""
    try:
        found = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    except OSError as error:
        raise BadInput(f"{where} cannot be read: {error.strerror}") from error
    names = {file.name for file in found}
    if "dataset_dict.json" in names:
        splits = [file.name for file in found if (file / "dataset_info.json").is_file()]
        raise BadInput(
            f"{where} holds several splits, as save_to_disk writes them; name one of them: "
            f"{', '.join(f'{folder}/{split}' for split in splits)}"
        )
    if {"dataset_info.json", "state.json"} <= names:
        return [file for file in found if _kind(file) in ARROW_SUFFIXES]
    return found


def is_readable_kind(path: Path) -> bool:
    """Whether the name ends like that of a file that can be read."""
    return has_rows(path) or _kind(path) in TEXT_SUFFIXES


def has_rows(path: Path) -> bool:
    """Whether the name ends like that of a file whose rows have keys or columns."""
    kind = _kind(path)
    packed = path.suffix.lower() != kind
    return kind in JSON_SUFFIXES + CSV_SUFFIXES or (kind in PARQUET_SUFFIXES + ARROW_SUFFIXES and not packed)


def read_documents(path: Path, field: str, text_rows: TextRows) -> Iterator[Document]:
    """Yields the documents of one file, in its order.

    Args:
        path: a file of a kind that ``is_readable_kind`` takes.
        field: the key (JSON) or column (CSV, parquet) that holds the text, or the messages of a conversation.
        text_rows: what a document is in a text file.

    Raises:
        BadInput: if the file cannot be read, is torn, is not UTF-8, or a row has no text.
    """
    if has_rows(path):
        for row in read_rows(path, only=field):
            yield document_of(row, field)
    else:
        with _reading(path):
            yield from _text_rows(path, text_rows)


def document_of(row: Row, field: str) -> Document:
    """Returns the text, or the conversation, of a row.

    Raises:
        BadInput: there is none under the key ``field``.
    """
    document = as_document(row.values.get(field))
    if document is None:
        raise BadInput(f"{row.where}: {_no_text(field, row.values)}")
    return document


def read_rows(path: Path, only: str | None = None) -> Iterator[Row]:
    """Yields the rows of one file, in its order.

    A row is an object of a JSON-lines file or of a JSON array (``.json`` may be either), a record of a CSV file with a
    line of column names, or a row of a parquet or an Arrow file.

    Args:
        path: a file of a kind that ``has_rows`` takes.
        only: the one column that is wanted, which saves reading the others of a parquet file; None for all.

    Raises:
        BadInput: if the file cannot be read, is torn, is not UTF-8, a row is no row, or a parquet file lacks ``only``.
    """
    kind = _kind(path)
    with _reading(path):
        if kind in PARQUET_SUFFIXES + ARROW_SUFFIXES:
            yield from _column_rows(path, only)
        elif kind in CSV_SUFFIXES:
            yield from _csv_rows(path)
        else:
            yield from _json_rows(path)


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in UNPACKERS else suffix


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what reading raises about a file into one message with its name."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text: {error.reason}; convert it to UTF-8") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from error


def _text_rows(path: Path, text_rows: TextRows) -> Iterator[str]:
    with open_text(path) as file:
        if text_rows == "file":
            yield file.read()
        elif text_rows == "stripped":
            yield from (line.strip() for line in file)
        else:
            yield from (line if line.strip() else "" for line in file)


def _json_rows(path: Path) -> Iterator[Row]:
    with open_text(path) as file:
        start = next((line.lstrip() for line in file if line.strip()), "")
        file.seek(0)
        if start.startswith("[") and _kind(path) == ".json":
            yield from _json_array(path, file.read())
            return
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path}, line {number}"
                yield Row(where, _object(where, _parsed(line, where, "one object a line")))


def _json_array(path: Path, text: str) -> Iterator[Row]:
    for number, value in enumerate(_parsed(text, str(path), "an array of objects"), start=1):
        where = f"{path}, item {number}"
        yield Row(where, _object(where, value))


def _parsed(text: str, where: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"{where}: not valid JSON, {expected} ({error})") from error
    except ValueError as error:
        raise BadInput(f"{where}: a number of thousands of digits stands there, which cannot be read") from error
    except RecursionError as error:
        raise BadInput(f"{where}: the JSON is nested too deeply to be read; {expected} is expected") from error


def _object(where: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise BadInput(f"{where}: expected an object with keys, found {shown(value):.40}")
    return value


def _csv_rows(path: Path) -> Iterator[Row]:
    with open_text(path, newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            columns = next(reader, [])
            for values in reader:
                if not values:  # a blank line
                    continue
                where = f"{path}, line {reader.line_num}"
                if len(values) != len(columns):
                    raise BadInput(
                        f"{where}: {len(values)} values for the {len(columns)} columns {shown_keys(columns)}; "
                        "values with commas or line ends stand in double quotes"
                    )
                yield Row(where, dict(zip(columns, values, strict=True)))
        except csv.Error as error:
            raise BadInput(f"{path}, line {reader.line_num}: not valid CSV ({error})") from error


def _column_rows(path: Path, only: str | None) -> Iterator[Row]:
    """Rows of a parquet file, or of the stream of record batches that ``datasets`` writes."""
    check_extra("pyarrow", "parquet", f"{path}: Parquet and Arrow files need pyarrow")
    import pyarrow as pa  # slow to import, and seldom needed
    from pyarrow import parquet

    try:
        with pa.OSFile(str(path)) as source:
            if _kind(path) in PARQUET_SUFFIXES:
                file = parquet.ParquetFile(source)
                columns, batches = file.schema_arrow.names, file.iter_batches(columns=only and [only])
            else:
                stream = pa.ipc.open_stream(source)
                columns, batches = stream.schema.names, iter(stream)
            if only is not None and only not in columns:
                raise BadInput(f"{path} has no column {only!r}; its columns are {shown_keys(columns)}")
            rows = (row for batch in batches for row in _checked(batch).to_pylist())
            for number, row in enumerate(rows, start=1):
                yield Row(f"{path}, row {number}", row)
    except (BadInput, UnicodeDecodeError):
        raise
    except Exception as error:  # of a damaged file: Arrow's own, or of Python's types that a value does not fit
        raise BadInput(f"{path} cannot be read: {str(error)[:300]}") from error


def _checked(batch: "RecordBatch") -> "RecordBatch":
    """The rows, after a look at their offsets: a stream is mapped as it is, and wrong ones would end the process."""
    batch.validate(full=True)
    return batch


def _no_text(field: str, row: dict[str, object]) -> str:
    if field in row:
        return f"{field!r} holds {shown(row[field]):.40}, neither text nor messages"
    return f"there is no key {field!r}; the keys are {shown_keys(row)}"


def shown_keys(row: Iterable[object]) -> str:
    """The keys of a row for a message, however many they are and whatever is in them."""
    keys = ", ".join(islice(map(str, row), _MOST_KEYS + 1)) or "none"
    text = keys.encode("utf-8", "backslashreplace").decode()  # a message goes to files, too
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
