"""English text that every Python installation carries: the documentation of the standard library.

The documents are the documentation strings of the standard library's modules, read from their source files with
`ast` and never imported, the documentation strings of the built-in types and functions, and the language topics of
`pydoc_data.topics`. No download is needed and the text is the same for everybody who runs the same Python release,
which makes it a convenient source for calibration and for a quick perplexity.

Documents fall into three splits by a hash of their name, so that a document keeps its split when others come and go.
All modules of one package share a split. A documentation string that several modules copy is kept once, and a
paragraph that several splits share is kept in one of them, so that no text of one split is seen in another; `train`
goes before `calibration`, and both before `evaluation`.
"""

from __future__ import annotations

import ast
import builtins
import functools
import hashlib
import inspect
import json
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics
from typing import Literal, get_args

from prune_lab.cache.store import open_store
from prune_lab.utils.files import write_json

Split = Literal["train", "calibration", "evaluation"]

TOPIC_PREFIX = "pydoc_data.topics."
SKIPPED_NAMES = frozenset(
    {
        "__pycache__",
        "antigravity",
        "dist-packages",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
        "this",
        "turtledemo",
    }
)
SKIPPED_PREFIXES = ("_sysconfigdata", "config-")
LONG_TEXT = 60
"""Documentation strings and paragraphs of at least this many characters are not repeated; short ones may be."""

_KEPT = "documents.json"
_IDENTIFIER = re.compile(r"[^\W\d]\w*")
_MEMORY_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Document:
    """One document of the corpus.

    Attributes:
        name: the module's dotted name, such as `textwrap`, or `pydoc_data.topics.<topic>` for a language topic.
        text: the document's text, paragraphs parted by blank lines.
    """

    name: str
    text: str


@dataclass(frozen=True)
class _Entry:
    """A documentation string with the header line that stands above it (empty for a module's own)."""

    header: str
    docstring: str


def documents() -> list[Document]:
    """Returns all documents, sorted by name."""
    return list(_documents())


def split_of(name: str) -> Split:
    """Returns the split that a document belongs to: 80 % are for training, 10 % each for the other two.

    Args:
        name: a document's name. Modules are placed by their top-level package, topics by their own name.
    """
    key = name if name.startswith(TOPIC_PREFIX) else name.partition(".")[0]
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest(), "big") % 10
    if bucket == 0:
        return "calibration"
    return "evaluation" if bucket == 1 else "train"


def split(name: Split) -> list[Document]:
    """Returns the documents of one split, sorted by name.

    Raises:
        ValueError: if there is no split of that name.
    """
    if name not in get_args(Split):
        raise ValueError(f"no split is called {name!r}; there are {', '.join(get_args(Split))}")
    return [document for document in _documents() if split_of(document.name) == name]


@functools.cache
def _documents() -> tuple[Document, ...]:
    """All documents; reading them takes seconds, so they are kept for other processes."""
    return open_store().obtain(
        _digest(), "documentation of the standard library", read=_read_kept, make=_read_sources, write=_write_kept
    )


def _digest() -> str:
    """Of all that the documents follow from: this module, the Python, and its sources by size and time of change."""
    digest = hashlib.sha256(Path(__file__).read_bytes() + sys.version.encode())
    for name, path in _module_files():
        status = path.stat()
        digest.update(f"{name} {path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _read_kept(folder: Path) -> tuple[Document, ...]:
    kept = json.loads((folder / _KEPT).read_text(encoding="utf-8"))
    return tuple(Document(name, text) for name, text in kept.items())


def _write_kept(folder: Path, kept: tuple[Document, ...]) -> None:
    write_json(folder / _KEPT, {document.name: document.text for document in kept})


def _read_sources() -> tuple[Document, ...]:
    entries = {name: list(_module_entries(name, path)) for name, path in _module_files()}
    entries[builtins.__name__] = list(_builtin_entries())
    entries.update({TOPIC_PREFIX + topic: [_Entry("", text.strip())] for topic, text in topics.topics.items()})
    order = get_args(Split)
    names = sorted(entries, key=lambda name: (order.index(split_of(name)), name))
    docstrings: set[str] = set()
    owners: dict[str, Split] = {}
    texts = {name: _join(entries[name], split_of(name), docstrings, owners) for name in names}
    return tuple(Document(name, texts[name]) for name in sorted(texts) if texts[name])


def _join(entries: list[_Entry], split: Split, docstrings: set[str], owners: dict[str, Split]) -> str:
    """Joins the entries of one document without what other documents have already said.

    Args:
        entries: the entries in their order.
        split: the document's split.
        docstrings: long documentation strings seen so far; none of them is repeated. Those of the document are added.
        owners: the split that each long paragraph belongs to, with white space folded. New ones are added.
    """
    blocks = []
    for entry in entries:
        if len(entry.docstring) >= LONG_TEXT:
            if entry.docstring in docstrings:
                continue
            docstrings.add(entry.docstring)
        kept = []
        for paragraph in entry.docstring.split("\n\n"):
            folded = " ".join(paragraph.split())
            if len(folded) < LONG_TEXT or owners.setdefault(folded, split) == split:
                kept.append(paragraph)
        if kept:
            blocks.append("\n\n".join(kept) if not entry.header else entry.header + "\n" + "\n\n".join(kept))
    return "\n\n".join(blocks)


def _module_files() -> Iterator[tuple[str, Path]]:
    """Yields the dotted name and the source file of each module of the standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(_sources(root)):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            yield name, path


def _sources(folder: Path) -> Iterator[Path]:
    """The source files below a folder, without looking into ``site-packages`` and others that are skipped."""
    for path in folder.iterdir():
        name = path.name.removesuffix(".py")
        if name in SKIPPED_NAMES or name.startswith(SKIPPED_PREFIXES) or not _IDENTIFIER.fullmatch(name):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _sources(path)
        elif path.suffix == ".py":
            yield path


def _module_entries(name: str, path: Path) -> Iterator[_Entry]:
    """Yields the documentation strings of one module in the order of its source; none if it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    docstring = ast.get_docstring(tree)
    if docstring:
        yield _Entry("", docstring)
    yield from _definition_entries(tree, name)


def _definition_entries(node: ast.AST, prefix: str) -> Iterator[_Entry]:
    """Yields the documentation strings of all classes and functions below a node of a syntax tree."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, _Definition):
            yield from _definition_entries(child, prefix)
            continue
        name = f"{prefix}.{child.name}"
        docstring = ast.get_docstring(child)
        if docstring:
            signature = "" if isinstance(child, ast.ClassDef) else f"({ast.unparse(child.args)})"
            yield _Entry(name + signature, docstring)
        yield from _definition_entries(child, name)


def _builtin_entries() -> Iterator[_Entry]:
    """Yields the documentation strings of the built-in types, their methods and the built-in functions."""
    docstring = inspect.getdoc(builtins)
    if docstring:
        yield _Entry("", docstring)
    for name, member in sorted(vars(builtins).items()):
        if isinstance(member, type):
            yield from _object_entry(name, member)
            for method_name, method in sorted(vars(member).items()):
                if callable(method) and not isinstance(method, type):
                    yield from _object_entry(f"{name}.{method_name}", method)
        elif inspect.isbuiltin(member):
            yield from _object_entry(name, member)


def _object_entry(name: str, member: object) -> Iterator[_Entry]:
    """Yields the entry of a built-in object that has a documentation string."""
    docstring = getattr(member, "__doc__", None)
    if not isinstance(docstring, str) or not docstring.strip():
        return
    try:
        signature = _MEMORY_ADDRESS.sub("", str(inspect.signature(member)))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        signature = ""
    yield _Entry(f"builtins.{name}{signature}", inspect.cleandoc(docstring))
