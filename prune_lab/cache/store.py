"""Results that can be made again, kept by what determines them: in a folder of bounded size, for all processes."""

import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from prune_lab.cache.folder import cache_folder
from prune_lab.errors import BadInput
from prune_lab.utils.disk import disk_failure
from prune_lab.utils.files import flush, share, write_json
from prune_lab.utils.locks import locked
from prune_lab.utils.manifest import first_wrong, manifest_of

logger = logging.getLogger(__name__)

LIMIT = "PRUNE_LAB_CACHE_GB"
"""The environment variable that says how large the store may become, in 10^9 bytes."""
_DEFAULT_GB = 20.0
MANIFEST = "entry.json"
_TOO_LARGE = "not kept for other runs: %.3g GB are more than the store may hold (%s)"
UNFINISHED_NAMES = (".new-", ".old-")
LEFT_BEHIND = 24 * 3600  # seconds after which an unfinished entry is that of a process that died

_ELSEWHERE = "make room there, or set PRUNE_LAB_CACHE to a folder on another disk"

T = TypeVar("T")


class NoRoom(Exception):
    """A result that has to be kept cannot be; the message begins with "it", and says what to do."""


@dataclass(frozen=True)
class Store:
    """A folder with an entry for each key.

    An entry is a folder of files with a manifest of their sizes and checksums. It appears whole or not at all, is
    checked whenever it is read, and goes when room is needed and it is the one that was not used for the longest time.
    Users may share a store: files have the permissions of the umask, and what one of them may not read is left alone.

    Args:
        folder: where entries are; made if need be.
        limit: of the bytes of all entries together.
    """

    folder: Path
    limit: int

    def obtain(
        self, key: str, what: str, *, read: Callable[[Path], T], make: Callable[[], T], write: Callable[[Path, T], None]
    ) -> T:
        """What is kept under a key; made and kept where nothing is.

        Args:
            key: a hexadecimal digest of all that decides the result.
            what: it is, for whoever waits while another process makes it.
            read: the result, from the entry's folder.
            make: the result; called with no other process at the same one.
            write: the result, into the entry's folder.
        """
        if not self.limit:
            return make()
        found = self.load(key, read)
        if found is not None:
            return found
        with self.claimed(key, what):
            found = self.load(key, read)
            if found is None:
                found = made = make()
                self.keep(key, lambda folder: write(folder, made))
        return found

    def obtain_folder(self, key: str, what: str, fill: Callable[[Path], object], *, expected: int) -> Path:
        """The folder of an entry, filled where there is none yet; for results that others read as files.

        Args:
            key: see `obtain`.
            what: see `obtain`.
            fill: writes the entry's files into a folder; called with no other process at the same one.
            expected: bytes that are needed for it, roughly; nothing is written where they would not fit.

        Raises:
            NoRoom: there is not enough of it.
        """
        found = self.load(key, Path)
        if found is not None:
            return found
        with self.claimed(key, what) as alone:
            found = self.load(key, Path)
            if found is None:
                try:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    for left in self.folder.glob(f"{_unfinished(key)}*") if alone else ():
                        shutil.rmtree(left, ignore_errors=True)  # by a process that was killed
                    self._check_room(expected)
                    self._make(key, fill)
                except Exception as error:
                    if failure := disk_failure(error):
                        raise NoRoom(f"it cannot be written to {self.folder}: {failure}; {_ELSEWHERE}") from error
                    raise
                found = self.load(key, Path)
        if found is None:
            raise NoRoom(f"it is not to be found in {self.folder} after it was written; {_ELSEWHERE}")
        return found

    def load(self, key: str, read: Callable[[Path], T]) -> T | None:
        """What ``read`` makes of the entry's folder.

        Returns:
            ``None`` if there is no entry, if it just goes, if it is damaged (it is set aside then), or if it cannot be
            read: another user's, or on a disk that fails.
        """
        entry = self.entry_of(key)
        try:
            manifest = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))
            wrong = first_wrong(entry, manifest["files"])
            if wrong is None:
                with suppress(OSError):  # another user's may be read, not touched
                    os.utime(entry / MANIFEST)
                return read(entry)
        except FileNotFoundError as error:
            wrong = f"{error.filename} is missing"
        except OSError as error:
            logger.warning("%s cannot be read (%s); the result is made again", entry, error.strerror or error)
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            wrong = str(error)
        if entry.is_dir():  # else there is none, or another process has just removed it
            self._set_aside(entry, wrong)
        return None

    def has(self, key: str) -> bool:
        """Whether there is an entry, whole or damaged."""
        return (self.entry_of(key) / MANIFEST).is_file()

    def keep(self, key: str, fill: Callable[[Path], None], *, expected: int = 0) -> None:
        """Makes an entry; what goes wrong is a warning, as the result can be made again.

        Args:
            key: a hexadecimal digest.
            fill: writes the entry's files into a folder.
            expected: its bytes, roughly; nothing is written where they would not fit.
        """
        if not self.limit:  # the user wants none
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
            if 2 * expected > free:
                logger.info(
                    "not kept for other runs: %.3g GB would fill the disk of %s, which has %.3g GB left",
                    *(expected / 1e9, self.folder, free / 1e9),
                )
                return
            if max(expected, 1) > self.limit:
                logger.info(_TOO_LARGE, expected / 1e9, LIMIT)
                return
            self._make(key, fill)
        except Exception as error:  # libraries have kinds of their own for a full disk
            reason = disk_failure(error) or (str(error) if isinstance(error, OSError) else None)
            if reason is None:
                raise
            logger.warning("not kept for other runs in %s: %s", self.folder, reason)

    def claimed(self, key: str, what: str) -> AbstractContextManager[bool]:
        """Keeps other processes from making the same entry meanwhile; waits while another one does, see `locked`."""
        path = self.folder / "locks" / f"{key}.lock"
        return locked(path, waiting=f"another process is at the same {what}; waiting for it")

    def size(self) -> int:
        """Bytes of all entries, as their manifests say, at a moment when none comes or goes."""
        with self.arranging():
            return sum(size for _, size, _ in self._entries())

    def entry_of(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def _make(self, key: str, fill: Callable[[Path], object]) -> None:
        new = Path(tempfile.mkdtemp(dir=self.folder, prefix=_unfinished(key)))
        try:
            fill(new)
            self._move_in(new, self.entry_of(key), _manifest(new))
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _check_room(self, expected: int) -> None:
        free, needed = shutil.disk_usage(self.folder).free, f"it takes {expected / 1e9:.3g} GB, and"
        if expected > self.limit:
            raise NoRoom(f"{needed} the store may hold {self.limit / 1e9:.3g}; set {LIMIT} to more")
        if expected > free:
            raise NoRoom(f"{needed} there is room for {free / 1e9:.3g} at {self.folder}; {_ELSEWHERE}")

    def _move_in(self, new: Path, entry: Path, size: int) -> None:
        """Makes room, and lets the entry appear, with nobody else doing the same."""
        if size > self.limit:
            logger.info(_TOO_LARGE, size / 1e9, LIMIT)
            return
        with self.arranging():
            if entry.exists():  # another process was as quick
                return
            self._make_room(size)
            entry.parent.mkdir(parents=True, exist_ok=True)
            share(new)
            new.rename(entry)
            flush(entry.parent)

    def _make_room(self, size: int) -> None:
        for left in (path for path in self.folder.iterdir() if path.name.startswith(UNFINISHED_NAMES)):
            with suppress(FileNotFoundError):  # who made it has just removed it
                if time.time() - left.stat().st_mtime > LEFT_BEHIND:
                    shutil.rmtree(left, ignore_errors=True)
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries) + size
        for _, bytes_of, path in entries:
            if total <= self.limit:
                break
            self.remove(path)
            total -= bytes_of

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """Last use, bytes and folder of every entry; those that were set aside count as never used."""
        for entry in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            try:
                size = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))["bytes"]
                yield (entry / MANIFEST).stat().st_mtime, size, entry
            except (OSError, ValueError, TypeError, KeyError):
                yield 0.0, _bytes(entry), entry
        for entry in self.folder.glob("damaged/*"):
            yield 0.0, _bytes(entry), entry

    def _set_aside(self, entry: Path, wrong: str) -> None:
        aside = self.folder / "damaged" / f"{entry.name}-{time.time_ns()}"
        logger.warning("%s is damaged (%s) and will be made again; it is now %s", entry, wrong, aside)
        try:
            aside.parent.mkdir(exist_ok=True)
            entry.rename(aside)
        except OSError:  # another process was as quick
            pass

    def remove(self, entry: Path) -> None:
        old = self.folder / f"{UNFINISHED_NAMES[1]}{entry.name}-{time.time_ns()}"
        try:
            entry.rename(old)  # at once: nobody reads half an entry
        except OSError:
            return
        shutil.rmtree(old, ignore_errors=True)

    @contextmanager
    def arranging(self) -> Iterator[None]:
        with locked(self.folder / "locks" / "store.lock", waiting="another process arranges the store; waiting for it"):
            yield


def open_store() -> Store:
    """The store in the cache folder.

    Raises:
        BadInput: ``PRUNE_LAB_CACHE_GB`` is no number of at least 0.
    """
    text = os.environ.get(LIMIT, str(_DEFAULT_GB))
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not limit >= 0 or math.isinf(limit):
        raise BadInput(f"{LIMIT}={text} is not allowed; it is a number of gigabytes, 0 to keep nothing")
    return Store(cache_folder() / "store", int(limit * 1e9))


def _manifest(folder: Path) -> int:
    """Writes the manifest of a folder's files, which are flushed to disk, and returns their bytes."""
    names = [file.name for file in folder.iterdir()]
    for name in names:
        flush(folder / name)
    files = manifest_of(folder, names)
    size = int(sum(each["bytes"] for each in files.values()))
    write_json(folder / MANIFEST, {"bytes": size, "files": files})
    flush(folder)
    return size


def _unfinished(key: str) -> str:
    """How the name of a folder begins in which an entry is made."""
    return f"{UNFINISHED_NAMES[0]}{key[:16]}-"


def _bytes(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.glob("*"))
    except OSError:  # another user's, or it just goes
        return 0
