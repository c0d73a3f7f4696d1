"""Where text and rows come from: the standard library, files, or the Hugging Face hub."""

import dataclasses
import logging
import os
import platform
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar, Protocol, get_args

from prune_lab.data import stdlib
from prune_lab.data.chats import Document, length
from prune_lab.data.documents import Row, TextRows, find_files, has_rows, is_readable_kind, read_documents, read_rows
from prune_lab.data.limits import check_length
from prune_lab.errors import BadInput, BadSetting
from prune_lab.models.hub import how_to_get_access
from prune_lab.utils.checks import check_choice, check_text, check_texts, check_whole
from prune_lab.utils.paths import local_path, why_missing

logger = logging.getLogger(__name__)

PROBE_SECONDS = 5.0
"""How long the hub may take to answer at all before a download is given up."""

_LOOK_EVERY = 2**24  # characters

ROOT_KINDS = (".jsonl", ".json", ".parquet", ".csv", ".txt")
PACKED = ("", ".gz", ".xz")
"""A local copy may be packed: every name is tried with these endings."""


class TextSource(Protocol):
    """Documents, and what stands between them when they are joined to one text."""

    join: str

    def read(self) -> list[Document]:
        """The documents, texts or conversations; raises BadInput if they cannot be had."""
        ...

    def describe(self) -> dict[str, object]:
        """What was read, as plain JSON for the protocol."""
        ...


class RowSource(Protocol):
    """Rows with keys or columns."""

    def read(self) -> Iterator[Row]:
        """The rows, in their order; raises BadInput if they cannot be had."""
        ...

    def describe(self) -> dict[str, object]:
        """What was read, as plain JSON for the protocol."""
        ...


@dataclass
class StdlibText:
    """The documentation of Python's standard library (see ``prune_lab.data.stdlib``).

    Attributes:
        split: ``train``, ``calibration`` or ``evaluation``.
        join: between two documents.
    """

    split: stdlib.Split
    join: str = "\n\n"

    def __post_init__(self) -> None:
        check_choice(self, "split", get_args(stdlib.Split))
        check_text(self, "join", empty=True)

    def read(self) -> list[Document]:
        """The documents of the split, sorted by name."""
        return [document.text for document in stdlib.split(self.split)]

    def describe(self) -> dict[str, object]:
        """The split and the Python release, on which the text depends."""
        return {"source": "stdlib", "split": self.split, "python": platform.python_version()}


@dataclass
class FileText:
    """Text of a user's own files.

    A ``.txt`` file is one document; each object of a JSON file and each row of a CSV or parquet file is one.

    Attributes:
        path: of a file or a folder, or a glob pattern; the files are read in the order of their names.
        join: between two documents.
        field: the key or column that holds the text, or the messages of a conversation.
        key: the configuration key that gave the path, for messages.
    """

    input_files: ClassVar = ("path",)
    path: str
    join: str = "\n\n"
    field: str = "text"
    key: str = "path"
    files: list[Path] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.files = find_files(self.path, self.key)

    def read(self) -> list[Document]:
        """The documents of all files."""
        documents = (text for file in self.files for text in read_documents(file, self.field, "file"))
        return all_of(documents, self.key)

    def describe(self) -> dict[str, object]:
        """The path and how many files it stood for."""
        return {"source": "files", "path": self.path, "files": len(self.files)}


@dataclass
class HubFile:
    """One file of a data set on the Hugging Face hub, or of a local copy of it.

    The file itself is fetched, not a data set built from it: that needs no loading script, works with every copy in the
    hub's cache, and reads no more of a large shard than is asked for.

    Attributes:
        repo: the data set, such as ``allenai/c4``.
        file: of the data set.
        split: that the file holds; a local copy may be called ``<split>.jsonl``, ``.parquet``, ``.csv`` and so on.
        revision: commit, tag or branch of the data set.
        local_names: further names that a local copy may have; like all names, with or without ``.gz`` or ``.xz``.
        root: the folder of the local copy; None to use the hub.
    """

    input_files: ClassVar = ("root",)
    repo: str
    file: str
    split: str
    revision: str = "main"
    local_names: list[str] = dataclasses.field(default_factory=list)
    root: str | None = None

    def __post_init__(self) -> None:
        check_text(self, "repo", "file", "split", "revision")
        check_texts(self, "local_names")
        check_text(self, "root", optional=True, hint="a folder; null: the hub")
        if self.root is not None:
            self._local_copy(local_path(self.root))

    def describe(self) -> dict[str, object]:
        """The data set and its file, or the local file that was read instead."""
        origin: dict[str, object] = {"source": self.repo, "split": self.split}
        if self.root is None:
            return origin | {"revision": self.revision, "file": self.file}
        return origin | {"file": str(self._local_copy(local_path(self.root)))}

    def _can_read(self, path: Path) -> bool:
        return is_readable_kind(path)

    def _local_copy(self, root: Path) -> Path:
        if not os.path.isdir(root):
            raise BadSetting(self, "root", f": {why_missing(str(root), 'folder')}")
        names = [self.file]
        if self.split in Path(self.file).name:  # a bare name that does not say its split could be the wrong file
            names.append(Path(self.file).name)
        names += [*self.local_names, *(self.split + kind for kind in ROOT_KINDS if self._can_read(Path(f"a{kind}")))]
        for name in names:
            for path in (root / (name + ending) for ending in PACKED):
                if path.is_file() and self._can_read(path):
                    return path
        if (root / "dataset_dict.json").is_file() or (root / "state.json").is_file():
            raise BadSetting(
                self, "root", "was written by save_to_disk; use data=files data.calibration=DIR data.evaluation=DIR"
            )
        looked_for = f"{', '.join(names)} (plain, .gz or .xz)"
        raise BadSetting(self, "root", f"has no copy of {self.repo}, split {self.split}; looked for {looked_for}")

    def _fetch(self) -> Path:
        """The file on this machine: the local copy, the one in the hub's cache, or a download."""
        if self.root is not None:
            return self._local_copy(local_path(self.root))
        from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

        cached = try_to_load_from_cache(self.repo, self.file, revision=self.revision, repo_type="dataset")
        if isinstance(cached, str):  # no question to the hub: the token digest in the protocol says what was read
            return Path(cached)
        if constants.HF_HUB_OFFLINE or os.environ.get("HF_DATASETS_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
            raise BadInput(self._not_had("the environment asks for offline use (HF_HUB_OFFLINE, HF_DATASETS_OFFLINE)"))
        if not _answers(constants.ENDPOINT):
            raise BadInput(self._not_had(f"{constants.ENDPOINT} cannot be reached"))
        logger.info("downloading %s of %s", self.file, self.repo)
        try:
            return Path(hf_hub_download(self.repo, self.file, revision=self.revision, repo_type="dataset"))
        except Exception as error:  # the client's errors share no base and differ between its versions
            access = how_to_get_access(error, f"https://huggingface.co/datasets/{self.repo}")
            raise BadInput(self._not_had(f"{error}. {access}" if access else str(error))) from error

    def _not_had(self, reason: str) -> str:
        return (
            f"{self.file} of {self.repo} (revision {self.revision}) is not in the cache and cannot be downloaded: "
            f"{reason}. For a local copy, set data.root=DIR (of a source of a mix data.sources.NAME.root=DIR) to the "
            f"folder with {self.file} or {self.split}.jsonl"
        )


@dataclass
class HubText(HubFile):
    """Text of one file of the hub or of a local copy.

    Attributes:
        join: between two documents.
        field: the key or column that holds the text.
        limit_documents: the first so many only; None for all.
        text_rows: what a document is in a local text file.
    """

    join: str = "\n\n"
    field: str = "text"
    limit_documents: int | None = None
    text_rows: TextRows = "stripped"

    def __post_init__(self) -> None:
        check_whole(self, "limit_documents", optional=True, hint="null: all")
        check_choice(self, "text_rows", get_args(TextRows))
        check_text(self, "join", empty=True)
        check_text(self, "field")
        super().__post_init__()

    def read(self) -> list[Document]:
        """The documents, in the order of the file."""
        documents = read_documents(self._fetch(), self.field, self.text_rows)
        return all_of(islice(documents, _most(self.limit_documents)), f"{self.file} of {self.repo}", self)


@dataclass
class HubRows(HubFile):
    """Rows of one file of the hub or of a local copy.

    Attributes:
        limit_rows: the first so many only; None for all.
    """

    limit_rows: int | None = None

    def __post_init__(self) -> None:
        check_whole(self, "limit_rows", optional=True, hint="null: all")
        super().__post_init__()

    def read(self) -> Iterator[Row]:
        """The rows, in the order of the file."""
        return islice(read_rows(self._fetch()), _most(self.limit_rows))

    def _can_read(self, path: Path) -> bool:
        return has_rows(path)


def all_of(documents: Iterator[Document], what: str, limited: object | None = None) -> list[Document]:
    """Takes all documents.

    Args:
        documents: to take.
        what: they are, for the message.
        limited: the source, where it can take fewer.

    Raises:
        BadInput: they have no room in memory.
    """
    found: list[Document] = []
    characters = looked_at = 0
    for document in documents:
        found.append(document)
        characters += length(document)
        if characters >= looked_at + _LOOK_EVERY:
            try:
                check_length(characters, what)
            except BadInput as error:
                fewer = f": ++{{at}}.limit_documents={max(1, len(found) * 9 // 10)}, say" if limited else ""
                raise BadInput(f"{error}{fewer}", limited) from error
            looked_at = characters
    return found


def _most(limit: int | None) -> int | None:
    return None if limit is None else min(limit, sys.maxsize)


def _answers(address: str) -> bool:
    """Whether a server answers at all; the hub's own client would try for half a minute to find out."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True  # an answer, if not a friendly one
    except OSError as error:
        return "SSL" in str(error)  # certificates: the client has its own, and says more about what is wrong
