"""Run folders: which there are below a folder, and how what the lab has written in them goes.

A run is known by the lab's notes in its folder. Of what lies there, a file goes only if its name and its size and time
of change are those that the run noted, or if it is one of those that the lab keeps for itself; links are neither
followed nor removed.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from prune_lab.clean.item import INTERRUPTED, RUNNING, RUNS, Item
from prune_lab.run import artifacts, own_files
from prune_lab.run.record import read_record
from prune_lab.run.removal import remove_empty, remove_files, size_of, sizes_in
from prune_lab.run.run_folder import claimed_if_free

_EARLIER = re.compile(rf"{re.escape(own_files.EARLIER)}\d{{8}}-\d{{6}}(-\d+)?")
_STATES = (".safetensors", ".json")  # what saved states and finished blocks consist of
_NOTES = f"{own_files.NOTES}/run.json"
_LOCK = f"{own_files.NOTES}/lock"
_OWN_NAMES = (
    *(f"{own_files.NOTES}/{name}" for name in ("stale", "room", "holder.json")),
    *(f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides")),
    "prune_lab.log", artifacts.WANDB_ID,
)  # fmt: skip


def runs_below(folder: Path) -> Iterator[Item]:
    """Yields the runs below a folder, and the results that were set aside there; links are not followed."""
    for place, names, _ in os.walk(folder, followlinks=False):
        path = Path(place)
        if _notes(path) is not None:
            yield _run(path)
            earlier = [path / name for name in sorted(names) if _EARLIER.fullmatch(name)]
            yield from (_earlier(each) for each in earlier if not each.is_symlink() and _record(each) is not None)
            names.clear()
        names[:] = sorted(name for name in names if not name.startswith("."))


def remove_run(item: Item) -> str | None:
    """Removes what a run has left, its record first: without it, nobody takes the run for finished.

    Args:
        item: from `runs_below`.

    Returns:
        What stays there, or why all does; ``None`` if the folder is gone.
    """
    of_run = item.path.parent if _EARLIER.fullmatch(item.path.name) else item.path
    with claimed_if_free(of_run) as free:
        if not free:
            return "a process is at work there"
        sizes = _own(item.path)
        record = sizes.pop(artifacts.RECORD, None)
        last = {name: sizes.pop(name) for name in (_NOTES, _LOCK) if name in sizes}
        for files in ({artifacts.RECORD: record} if record is not None else {}, sizes, last):
            remove_files(item.path, files)
        remove_empty(item.path, [f"{name}/x" for name in ("wandb", own_files.NOTES, ".hydra", *artifacts.PROGRESS)])
    with suppress(OSError):
        item.path.rmdir()
    if not item.path.exists():
        return None
    left = sorted(path.name for path in item.path.iterdir())
    return f"what the lab has not written there, or somebody has changed, stays: {', '.join(left[:3])}" + (
        f" and {len(left) - 3} more" if len(left) > 3 else ""
    )


def _run(folder: Path) -> Item:
    record = _record(folder)
    status = INTERRUPTED if record is None or own_files.is_stale(folder) else str(record["status"])
    with claimed_if_free(folder) as free:
        status = status if free else RUNNING
    return Item(RUNS, "run", status, folder, sum(_own(folder).values()), _changed(folder, _NOTES))


def _earlier(folder: Path) -> Item:
    record = _record(folder) or {"status": INTERRUPTED}
    size, changed = sum(_own(folder).values()), _changed(folder, artifacts.RECORD)
    return Item(RUNS, "earlier run", str(record["status"]), folder, size, changed)


def _own(folder: Path) -> dict[str, int]:
    """Sizes of the lab's files in a run folder, or in one with results that were set aside, by their paths."""
    notes, record = _notes(folder) or {}, _record(folder) or {}
    found = {name: size for name, size in sizes_in(record.get("files")).items() if _is_output(name)}
    for name, stamp in notes.get("files", {}).items():
        found.pop(name, None)
        if _is_output(name) and isinstance(stamp, list) and _as_noted(folder, name, stamp):
            found[name] = stamp[0]
    found = {name: size for name, size in found.items() if size_of(folder, name) == size}
    names = [*_OWN_NAMES, *_of_states(folder), *_of_wandb(folder)]
    names += [artifacts.RECORD] if record else []
    names += [_NOTES, _LOCK] if notes else []
    for name in names:
        size = size_of(folder, name)
        if size is not None:
            found[name] = size
    return found


def _is_output(name: str) -> bool:
    """Whether a run writes files of such a name; notes that say otherwise are not the lab's."""
    return name.partition("/")[0] in artifacts.OUTPUTS


def _as_noted(folder: Path, name: str, stamp: list[Any]) -> bool:
    if len(stamp) < 2 or size_of(folder, name) is None:
        return False
    found = (folder / name).lstat()
    return [found.st_size, found.st_mtime_ns] == stamp[:2]


def _of_states(folder: Path) -> Iterator[str]:
    for top in (artifacts.BLOCKS, artifacts.TRAINING, artifacts.ALLOCATION):
        yield from (name for name in _below(folder, top) if name.endswith(_STATES))


def _of_wandb(folder: Path) -> Iterator[str]:
    """The files of W&B's runs, which are below folders of its own."""
    for name in _below(folder, "wandb"):
        parts = name.split("/")
        if len(parts) > 2 and parts[1].startswith(("offline-run-", "run-", "data")):
            yield name


def _below(folder: Path, top: str) -> Iterator[str]:
    for place, _, names in os.walk(folder / top, followlinks=False):
        if (folder / top).is_symlink():
            return
        yield from (Path(place, name).relative_to(folder).as_posix() for name in names)


def _notes(folder: Path) -> dict[str, Any] | None:
    """The lab's notes about a run folder; ``None`` where there are none, or something else in their place."""
    if any((folder / name).is_symlink() for name in (own_files.NOTES, _LOCK)):  # to lock it is to write there
        return None
    found = own_files.read_note(folder / _NOTES)
    return found if "key" in found and isinstance(found.get("files"), dict) else None


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        return read_record(folder)
    except (OSError, ValueError):
        return None


def _changed(folder: Path, name: str) -> float:
    return (folder / name).lstat().st_mtime
