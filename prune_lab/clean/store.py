"""The entries of the store: which there are, and how they go."""

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prune_lab.cache.store import LEFT_BEHIND, MANIFEST, UNFINISHED_NAMES, Store
from prune_lab.clean.item import DAMAGED, KEPT, STORE, UNFINISHED, Item
from prune_lab.utils.files import read_regular
from prune_lab.utils.locks import Held, locked_at_once

_KEY = re.compile(r"[0-9a-f]{16,}")
_ASIDE = re.compile(r"[0-9a-f]{16,}-\d+")
_MOST_BYTES = 2**25  # of a manifest


def entries_of(store: Store) -> Iterator[Item]:
    """Yields the entries of a store, and what was set aside or never finished there; nothing that others put there."""
    for entry in _folders(store.folder, "[0-9a-f][0-9a-f]/*"):
        manifest = _manifest(entry)
        if _KEY.fullmatch(entry.name) and manifest is not None:
            changed = (entry / MANIFEST).stat().st_mtime
            yield Item(STORE, _kind(manifest), KEPT, entry, _bytes(entry), changed)
    for entry in _folders(store.folder, "damaged/*"):
        if _ASIDE.fullmatch(entry.name):
            yield Item(STORE, "result", DAMAGED, entry, _bytes(entry), entry.lstat().st_mtime)
    for entry in _folders(store.folder, "*"):
        if entry.name.startswith(UNFINISHED_NAMES):
            yield Item(STORE, "result", UNFINISHED, entry, _bytes(entry), entry.lstat().st_mtime)


def remove_entry(store: Store, item: Item, now: float) -> str | None:
    """Removes an entry, while nobody else arranges the store.

    Args:
        store: that it is in.
        item: the entry, from `entries_of`.
        now: seconds since 1970.

    Returns:
        Why it stays; ``None`` if it is gone.
    """
    if item.status == UNFINISHED and now - item.changed < LEFT_BEHIND:
        return "a process may be at work on it"
    if item.status == KEPT and (odd := _others(item.path)):
        return f"it holds {odd}, which the lab has not written there"
    lock = store.folder / "locks" / f"{item.path.name}.lock"
    lock.parent.mkdir(exist_ok=True)
    try:
        with locked_at_once(lock), store.arranging():
            store.remove(item.path)
    except Held:
        return "a process is at work on it"
    return "it cannot be removed" if item.path.exists() else None


def _folders(folder: Path, pattern: str) -> Iterator[Path]:
    """Folders, and no links to some."""
    for path in sorted(folder.glob(pattern)):
        if stat.S_ISDIR(path.lstat().st_mode) and not path.parent.is_symlink():
            yield path


def _manifest(entry: Path) -> dict[str, Any] | None:
    """The manifest of an entry; ``None`` where there is none, which is then no entry of the lab's."""
    try:
        found = json.loads(read_regular(entry / MANIFEST, _MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(found, dict) and isinstance(found.get("bytes"), int) and isinstance(found.get("files"), dict)
    return found if whole else None


def _kind(manifest: dict[str, Any]) -> str:
    names = set(manifest["files"])
    if "state.json" in names:
        return "stage"
    if "latency.json" in names:
        return "latency table"
    return "model" if "config.json" in names else "result"


def _others(entry: Path) -> str | None:
    """What is in an entry that its manifest does not name."""
    manifest = _manifest(entry) or {"files": {}}
    odd = [path.name for path in sorted(entry.iterdir()) if path.name not in (*manifest["files"], MANIFEST)]
    return ", ".join(odd[:3]) if odd else None


def _bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.iterdir() if not path.is_symlink())
