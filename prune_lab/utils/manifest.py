"""Sizes and checksums of files, by which damage is found later.

Checksums are XXH3: they are there to find damage, not forgery, and cost a quarter more than reading the bytes does,
where SHA-256 costs five times as much.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

Manifest = dict[str, dict[str, Any]]
"""By a file's path below the folder, its ``bytes`` and its checksum ``xxh3``."""

_CHUNK = 2**20
_CHECKSUMS: dict[str, Callable[[], Any]] = {"xxh3": xxhash.xxh3_128, "sha256": hashlib.sha256}


def manifest_of(folder: Path, names: Iterable[str]) -> Manifest:
    """Describes files below a folder.

    Args:
        folder: where they are.
        names: their paths below it.
    """
    return {
        name: {"bytes": (folder / name).stat().st_size, "xxh3": checksum(folder / name, "xxh3")}
        for name in sorted(names)
    }


def first_wrong(folder: Path, manifest: Mapping[str, Mapping[str, Any]], trusted: Collection[str] = ()) -> str | None:
    """Says what is wrong with the first file that is not as it was described; ``None`` if all are.

    Args:
        folder: where the files are.
        manifest: what was said of them.
        trusted: names whose size alone is looked at.

    Raises:
        OSError: a file is there, and cannot be read.
        KeyError, TypeError, AttributeError: the manifest is none.
    """
    for name, said in manifest.items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            return f"{name} is no path below the folder"
        path = folder / name
        try:
            size = path.stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return f"{name} is missing"
        if size != said["bytes"]:
            return f"{name} has another size"
        kind = "xxh3" if "xxh3" in said else "sha256"  # the latter in entries of earlier versions
        if name not in trusted and checksum(path, kind) != said[kind]:
            return f"{name} has another checksum"
    return None


def checksum(path: Path, kind: str) -> str:
    """The checksum of a file's content.

    Args:
        path: of the file.
        kind: ``xxh3``, or ``sha256`` where others are to recognise it.
    """
    digest = _CHECKSUMS[kind]()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return str(digest.hexdigest())
