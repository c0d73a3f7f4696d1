"""What of a run folder the lab has written itself, and what has to make room for a new run.

Nothing that the lab has not written is ever replaced or removed. For that a run notes in ``.prune_lab/run.json`` which
files are its own, after every stage. What another run has left is set aside, in a folder ``earlier-TIME`` beside the
new results; so is what somebody has changed since the run noted it.
"""

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prune_lab.run import artifacts
from prune_lab.run.record import read_record
from prune_lab.utils.files import read_regular, write_json, write_text
from prune_lab.utils.manifest import Manifest, first_wrong, manifest_of

logger = logging.getLogger(__name__)

NOTES = ".prune_lab"
EARLIER = "earlier-"
_STATE, _STALE, _ROOM = "run.json", "stale", "room"
_RECORD_BYTES = 2**18
_NOTE_BYTES = 2**25  # of a run with ten thousand files
_RESERVED = (artifacts.RECORD, *artifacts.OUTPUTS, *artifacts.PROGRESS)
_FOLDERS = (
    artifacts.MODEL,
    artifacts.ADAPTER,
    artifacts.BLOCKS,
    artifacts.TRAINING,
    artifacts.ALLOCATION,
    *artifacts.EVALUATION_FOLDERS,
)
_LOG, _HYDRA = "prune_lab.log", ".hydra"
_WRITTEN_INTO = {  # names that stay from run to run, and whether a folder has that name
    _LOG: False, NOTES: True, _HYDRA: True,
    **{f"{NOTES}/{name}": False for name in (_STATE, _STALE, _ROOM, "lock", "holder.json")},
    **{f"{_HYDRA}/{name}.yaml": False for name in ("config", "hydra", "overrides")},
}  # fmt: skip
_BESIDE = (*artifacts.PROGRESS, artifacts.RECORD, "wandb", _LOG)  # neither outputs nor anybody else's
_TEMPORARY = re.compile(r"\.({})\.[a-z0-9_]{{8}}".format("|".join(map(re.escape, _RESERVED))))
_LARGE = 2**30  # bytes from which a file's digest is left out where the system says that nobody has touched it

Stamps = dict[str, list[int]]
"""By a file's path below the folder, its bytes and the times of its and its inode's last change in nanoseconds."""


@dataclass
class RunFolder:
    """A folder in which a run is at work; made by `take`.

    Args:
        path: of the folder.
        key: of the run's settings.
        identity: of the run, where it was looked up.
        foreign: names of what was there before, and stays.
    """

    path: Path
    key: str
    identity: str | None
    foreign: list[str]

    def files(self) -> list[str]:
        """Returns the paths of what the run has left below its folder, but for its record."""
        own = (name for name in _names(self.path) if name not in (*self.foreign, *_BESIDE) and name[:1] != ".")
        return sorted(_below(self.path, (name for name in own if not name.startswith(EARLIER))))

    def manifest(self) -> Manifest:
        """Returns sizes and checksums of those files."""
        return manifest_of(self.path, self.files())

    def keep_room(self) -> None:
        """Writes a file in whose place the record of a failure fits when the disk is full."""
        write_text(self.path / NOTES / _ROOM, "-" * _RECORD_BYTES)

    def give_way(self) -> None:
        """Removes that file."""
        (self.path / NOTES / _ROOM).unlink(missing_ok=True)

    def note(self) -> None:
        """Notes which files are the run's, as they are now: what is changed by somebody else from here on is theirs."""
        stamps = {name: _stamp(self.path / name) for name in self.files()}
        write_json(
            self.path / NOTES / _STATE,
            {"key": self.key, "identity": self.identity, "foreign": self.foreign, "files": stamps},
        )


def take(folder: Path, key: str, identity: str | None) -> RunFolder:
    """Prepares a folder that is `claimed` for a run: sets aside what another run has left, and keeps what is its own.

    Args:
        folder: of the run.
        key: of its settings.
        identity: of the run; ``None`` if it was not looked up.
    """
    state, record = _state(folder), _record(folder)
    if record.get("status") == artifacts.FINISHED or not _is_same(state, key, identity):
        _set_aside(folder, _own(folder, state))
    else:  # it goes on where it was interrupted
        _set_aside(folder, _changed(folder, state["files"]))
        (folder / artifacts.RECORD).unlink(missing_ok=True)
    if state:
        for name in filter(_TEMPORARY.fullmatch, _names(folder)):  # of a process that was killed while it wrote
            _remove(folder / name)
    before = _tops(state.get("files", {}))
    foreign = [
        name for name in _names(folder)
        if name not in (*_RESERVED, *_BESIDE, *before) and name[:1] != "." and not name.startswith(EARLIER)
    ]  # fmt: skip
    taken = RunFolder(folder, key, identity, foreign)
    taken.note()
    taken.keep_room()
    (folder / NOTES / _STALE).unlink(missing_ok=True)
    return taken


def foreign_in(folder: Path) -> list[str]:
    """Returns the names of what a run would replace in a folder that is no run's, or could not write into in any."""
    odd = [name for name, is_folder in _WRITTEN_INTO.items() if not _is_kind(folder / name, is_folder)]
    if odd or _state(folder) or _is_earlier_versions(folder):
        return odd
    found = [name for name in _RESERVED if os.path.lexists(folder / name)]
    if os.path.lexists(folder / _HYDRA) and not _is_of_the_lab(folder / _HYDRA):
        found.append(_HYDRA)
    return found


def identity_in(folder: Path) -> str | None:
    """Returns the identity of the run that was last at work in a folder."""
    found = _state(folder).get("identity")
    return found if isinstance(found, str) else None


def fault_of(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Says which file of a finished run is not as the run left it; ``None`` if all are.

    Checksums are read, but those of files above a gigabyte only where size or times of change are not those that the
    run noted.

    Args:
        folder: of the run.
        files: of its record.
    """
    noted: Stamps = _state(folder).get("files", {})
    try:
        trusted = [
            name for name, stamp in noted.items()
            if stamp[0] >= _LARGE and (folder / name).is_file() and stamp == _stamp(folder / name)
        ]  # fmt: skip
        return first_wrong(folder, files, trusted)
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    except (KeyError, TypeError, AttributeError):
        return f"{artifacts.RECORD} does not say which files it left"


def set_aside(folder: Path) -> None:
    """Sets aside all that the lab has written in a folder that is claimed."""
    _set_aside(folder, _own(folder, _state(folder)))


def mark_stale(folder: Path) -> None:
    """Notes that the record in a folder, if there is one, is not that of the job which is about to run there."""
    if (folder / artifacts.RECORD).exists():
        (folder / NOTES).mkdir(exist_ok=True)
        (folder / NOTES / _STALE).touch()


def is_stale(folder: Path) -> bool:
    """Returns whether the job of which `mark_stale` spoke never came to anything."""
    return (folder / NOTES / _STALE).exists()


def unmark_stale(folder: Path) -> None:
    """Takes `mark_stale` back: the record is what the job would have given."""
    (folder / NOTES / _STALE).unlink(missing_ok=True)


def _is_of_the_lab(settings: Path) -> bool:
    """Whether Hydra wrote a folder of settings for the lab; its first file tells where it was killed before the second.

    Hydra writes ``config.yaml``, then ``hydra.yaml``, before anything of the lab runs. Where it had not written a
    letter yet, nothing is lost either.
    """
    for name in ("hydra.yaml", "config.yaml"):
        text = (settings / name).read_text(errors="replace") if (settings / name).is_file() else ""
        if text:
            return "prune_lab" in text
    return not any(not path.is_file() or path.stat().st_size for path in settings.iterdir())


def _is_earlier_versions(folder: Path) -> bool:
    """Whether a run without notes was here: of an earlier version, or one that failed before it began."""
    record = _record(folder)
    if record.get("status") in artifacts.STATUSES and "metrics" in record and "protocol" in record:
        return True
    packages = read_note(folder / artifacts.ENVIRONMENT).get("packages")
    return isinstance(packages, dict) and "prune_lab" in packages


def _is_same(state: Mapping[str, Any], key: str, identity: str | None) -> bool:
    """Whether the run that was interrupted here is the one that starts: one that is not looked up goes by its key."""
    if state.get("key") != key or not isinstance(state.get("files"), dict):
        return False
    return None in (identity, state.get("identity")) or state["identity"] == identity


def _own(folder: Path, state: Mapping[str, Any]) -> list[str]:
    """What the lab has written in a folder, the record first: without it nothing counts as finished."""
    tops = _tops(state.get("files", {}))
    own = [name for name in _names(folder) if name in _RESERVED or name in tops]
    return sorted(own, key=lambda name: name != artifacts.RECORD)


def _changed(folder: Path, noted: Stamps) -> list[str]:
    """The outputs that are not as the run noted them, by the names at the top."""
    there = {name: _stamp(folder / name) for name in _below(folder, artifacts.OUTPUTS)}
    found = _tops(name for name, stamp in there.items() if noted.get(name, [])[:2] != stamp[:2])
    return sorted(found.union(name for name in _RESERVED if not _is_kind(folder / name, name in _FOLDERS)))


def _is_kind(path: Path, is_folder: bool) -> bool:
    """Whether what is in a place, if anything, is a folder, or else a regular file: to open a FIFO is to wait."""
    return (path.is_dir() if is_folder else path.is_file()) or not os.path.lexists(path)


def _set_aside(folder: Path, names: Iterable[str]) -> None:
    names = list(names)
    if not names:
        return
    aside = folder / f"{EARLIER}{time.strftime('%Y%m%d-%H%M%S')}"
    number = 1
    while aside.exists():
        number += 1
        aside = aside.with_name(f"{EARLIER}{time.strftime('%Y%m%d-%H%M%S')}-{number}")
    aside.mkdir()
    for name in names:
        (folder / name).rename(aside / name)
    logger.info("%s: what was there (%s) is now in %s", folder, ", ".join(names), aside.name)


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def _below(folder: Path, names: Iterable[str]) -> Iterator[str]:
    """The paths of all files that are, or lie below, some names at the top of a folder."""
    for name in names:
        path = folder / name
        for file in path.rglob("*") if path.is_dir() else [path]:
            if file.is_file():
                yield file.relative_to(folder).as_posix()


def _tops(names: Iterable[str]) -> set[str]:
    return {name.partition("/")[0] for name in names}


def _stamp(path: Path) -> list[int]:
    state = path.stat()
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def _state(folder: Path) -> dict[str, Any]:
    return read_note(folder / NOTES / _STATE)


def _record(folder: Path) -> dict[str, Any]:
    try:
        return read_record(folder)
    except (OSError, ValueError):
        return {}


def read_note(path: Path) -> dict[str, Any]:
    """Returns what a file of the lab's holds; nothing where it cannot be read."""
    try:
        found = json.loads(read_regular(path, _NOTE_BYTES))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
