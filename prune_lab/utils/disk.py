"""What a disk's failures look like: full, over quota, read-only, gone."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

_FAILURES = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EFBIG", "EIO", "ESTALE", "ENODEV", "ENXIO", "EREMOTEIO", "ENOTCONN")
    if hasattr(errno, name)
}
_IN_WORDS = re.compile(r"\(os error (\d+)\)")  # of libraries in Rust: safetensors, tokenizers
_OF_TORCH = re.compile("PytorchStreamWriter failed|inline_container|basic_ios::clear")


def disk_failure(error: BaseException) -> str | None:
    """Says which failure of a disk is behind an error, with the path where it is known; ``None`` if none is.

    Libraries report them in several ways: safetensors has an error of its own with the number in words, torch a
    ``RuntimeError``.

    Args:
        error: what was raised; what it was raised from counts, too.
    """
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno is not None and each.errno in _FAILURES:
            return f"{each.filename}: {os.strerror(each.errno)}" if each.filename else os.strerror(each.errno)
        found = _IN_WORDS.search(str(each))
        if found and int(found[1]) in _FAILURES:
            return os.strerror(int(found[1]))
        if _OF_TORCH.search(str(each)):
            return "the file could not be written to its end"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def free_at(folder: Path) -> int:
    """The bytes that are free on the disk of a folder, which need not be there yet."""
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.is_dir())
    return shutil.disk_usage(there).free
