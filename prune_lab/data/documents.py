"""Reads documents from text, JSON-lines and parquet files, and says in which file and line something is wrong."""

import glob
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

from prune_lab.errors import BadInput

TextRows = Literal["file", "stripped", "wikitext"]
"""What a document is in a text file.

``file``: the whole file. ``stripped``: each line, without blanks around it, as the hub has PTB. ``wikitext``: each line
with its blanks and its line end, but an empty string for a blank line, as the hub has WikiText.
"""

TEXT_SUFFIXES = (".txt", ".raw", ".tokens")
JSON_SUFFIXES = (".jsonl", ".json")
PARQUET_SUFFIXES = (".parquet",)
OPENERS: dict[str, Callable[..., IO[str]]] = {".gz": gzip.open, ".xz": lzma.open}
ALLOWED = f"{', '.join(TEXT_SUFFIXES + JSON_SUFFIXES)} (plain, .gz or .xz) and .parquet"


def find_files(path: str, key: str) -> list[Path]:
    """The files that ``path`` stands for, sorted by name: one file, the readable files of a folder, or a glob pattern.

    Args:
        path: Of a file or a folder, or a pattern with ``*``, ``?``, ``[...]`` or ``**``; ``~`` is the home folder.
        key: That gave the path, for the message.

    Raises:
        BadInput: If there is no such file, or none of a kind that can be read.
    """
    given = Path(path).expanduser()
    if given.is_file():
        if not is_readable_kind(given):
            raise BadInput(f"{key}={path}: files of this kind cannot be read; allowed are {ALLOWED}")
        return [given]
    if given.is_dir():
        found = sorted(file for file in given.iterdir() if not file.name.startswith("."))
    else:
        found = sorted(Path(match) for match in glob.glob(str(given), recursive=True))
    if not found and not given.is_dir():
        raise BadInput(f"{key}={path}: there is no such file or folder, and no file matches it as a pattern")
    files = [file for file in found if file.is_file() and is_readable_kind(file)]
    if not files:
        raise BadInput(f"{key}={path}: no file there can be read; allowed are {ALLOWED}")
    return files


def is_readable_kind(path: Path) -> bool:
    """Whether the name ends like that of a file that can be read."""
    kind = _kind(path)
    return kind in TEXT_SUFFIXES + JSON_SUFFIXES or (kind in PARQUET_SUFFIXES and path.suffix == kind)


def read_documents(path: Path, field: str, text_rows: TextRows) -> Iterator[str]:
    """Yields the documents of one file, in its order.

    Args:
        path: A file of a kind that ``is_readable_kind`` takes.
        field: The key (JSON lines) or column (parquet) that holds the text.
        text_rows: What a document is in a text file.

    Raises:
        BadInput: If the file cannot be read, is torn, is not UTF-8, or a row has no text.
    """
    kind = _kind(path)
    with _reading(path):
        if kind in PARQUET_SUFFIXES:
            yield from _parquet_rows(path, field)
        elif kind in JSON_SUFFIXES:
            yield from _json_rows(path, field)
        else:
            yield from _text_rows(path, text_rows)


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in OPENERS else suffix


def _open(path: Path) -> IO[str]:
    return OPENERS.get(path.suffix.lower(), open)(path, "rt", encoding="utf-8-sig")  # takes a byte-order mark or none


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
    with _open(path) as file:
        if text_rows == "file":
            yield file.read()
        elif text_rows == "stripped":
            yield from (line.strip() for line in file)
        else:
            yield from (line if line.strip() else "" for line in file)


def _json_rows(path: Path, field: str) -> Iterator[str]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise BadInput(f"{path}, line {number}: not valid JSON, one object a line ({error})") from error
            if not isinstance(row, dict):
                raise BadInput(f"{path}, line {number}: expected an object with the key {field!r}, found {row!r:.40}")
            if not isinstance(row.get(field), str):
                raise BadInput(_no_text(f"{path}, line {number}", field, row))
            yield row[field]


def _parquet_rows(path: Path, field: str) -> Iterator[str]:
    from pyarrow import ArrowException, parquet  # slow to import, and seldom needed

    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if field not in columns:
                raise BadInput(f"{path} has no column {field!r}; its columns are {', '.join(columns)}")
            values = (value for batch in file.iter_batches(columns=[field]) for value in batch.column(0).to_pylist())
            for number, value in enumerate(values, start=1):
                if not isinstance(value, str):
                    raise BadInput(_no_text(f"{path}, row {number}", field, {field: value}))
                yield value
    except ArrowException as error:
        raise BadInput(f"{path} cannot be read: {error}") from error


def _no_text(where: str, field: str, row: dict[str, object]) -> str:
    if field in row:
        return f"{where}: {field!r} holds {row[field]!r:.40}, not text"
    return f"{where}: there is no key {field!r}; the keys are {', '.join(map(str, row)) or 'none'}"
