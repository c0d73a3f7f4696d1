"""Reads the record of a run: the one place where that is done, whatever lies in its place.

Folders are looked at that others have filled, and a full disk cuts files short. So nothing in a record is trusted: what
is no regular file is not read, nor is what is too large, and what is read has the types that its readers rely on.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prune_lab.run import artifacts
from prune_lab.utils.files import read_regular

MOST_BYTES = 2**25
"""Of a record; those of runs have some thousands, and with ten thousand metrics and descriptions two million."""
MOST_DEPTH = 100
"""How deep a record is nested at most, so that no reader's recursion ends; those of runs reach ten."""
_SECTIONS = ("config", "choices", "metrics", "metric_info", "protocol")


class Unreadable(ValueError):
    """A record that is no record; the message says why, in one line."""


def read_record(folder: Path) -> dict[str, Any]:
    """Reads the record of a run.

    Args:
        folder: of the run.

    Returns:
        The record. ``status`` is a text; ``config``, ``choices``, ``metrics``, ``metric_info`` and ``protocol`` are
        there, as mappings; ``metrics`` holds numbers only, NaN and infinities among them. Halves of surrogate pairs,
        which no file can hold, are replaced.

    Raises:
        OSError: there is none, or it may not be read.
        Unreadable: it is damaged, or no record at all.
    """
    try:
        text = read_regular(folder / artifacts.RECORD, MOST_BYTES)
    except ValueError as error:
        raise Unreadable(f"it {error}") from error
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"it is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise Unreadable(f"it holds a {type(record).__name__}, not an object")
    if max(_depths(record)) > MOST_DEPTH:
        raise Unreadable(f"it is nested more than {MOST_DEPTH} deep")
    if "\\ud" in text.lower():  # the only way in which JSON holds a surrogate
        record = _mended(record)
    return _checked(record)


def section_of(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Returns a section of a record, or of a section; empty where there is none, or something else in its place.

    Args:
        record: as `read_record` gives it.
        names: of the section, from the outside in: ``"protocol", "data", "calibration"``.
    """
    found: Any = record
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


def _checked(record: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(record.get("status"), str):
        raise Unreadable("it has no status")
    sections: dict[str, dict[str, Any]] = {}
    for name in _SECTIONS:
        found = record.get(name) or {}
        if not isinstance(found, dict):
            raise Unreadable(f"its {name} is not an object")
        sections[name] = found
    sections["metrics"] = {name: value for name, value in sections["metrics"].items() if _is_number(value)}
    return record | sections


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False
    return True


def _depths(value: Any) -> Iterator[int]:
    """How deep each part is nested; without recursion, which is what this looks out for."""
    level, depth = [value], 0
    while level:
        depth += 1
        yield depth
        containers = [each.values() if isinstance(each, dict) else each for each in level]
        level = [part for parts in containers for part in parts if isinstance(part, dict | list)]


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_mended(each) for each in value]
    if isinstance(value, dict):
        return {_mended(key): _mended(each) for key, each in value.items()}
    return value
