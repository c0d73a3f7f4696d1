"""Says how far a sweep is: a row for each job that has ended, wherever it ran."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from prune_lab.run import artifacts
from prune_lab.sweep.jobs import Job, job_in, own_overrides
from prune_lab.sweep.kept import BestModel
from prune_lab.utils.text import duration

logger = logging.getLogger(__name__)

_PAUSE = 2.0  # seconds between two looks at the folders
_TAKEN = 2.0  # seconds: what took less was most likely taken from an earlier run
_LONGEST = 72  # characters of settings and result in a row


@dataclass
class Watch:
    """Looks for the records of jobs that have not ended yet.

    Args:
        folders: of the jobs, in order.
        overrides: all of each.
        objectives: the metrics that the sweep looks at.
        kept: decides which models stay; ``None``: all.
    """

    folders: Sequence[Path]
    overrides: Sequence[Sequence[str]]
    objectives: Sequence[str]
    kept: BestModel | None = None
    _begun: float = field(default_factory=time.time, init=False)
    _before: dict[Path, int | None] = field(init=False)  # times of records that were there before
    _pending: dict[Path, str] = field(init=False)
    _seconds: list[float] = field(default_factory=list, init=False)  # of the jobs that have ended
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self._before = {folder: _changed(folder / artifacts.RECORD) for folder in self.folders}
        self._pending = dict(zip(self.folders, own_overrides(self.overrides), strict=True))

    def jobs(self) -> list[Job]:
        """All jobs, in order, as they are now."""
        own = own_overrides(self.overrides)
        return [job_in(folder, each, self.objectives) for folder, each in zip(self.folders, own, strict=True)]

    def look(self) -> None:
        """Says of each job that has ended since the last time what became of it."""
        with self._lock:
            for folder, settings in list(self._pending.items()):
                job = job_in(folder, settings, self.objectives)
                if job.ended:
                    del self._pending[folder]
                    self._seconds.append(self._took(folder))
                    logger.info("%s", self._row(job))
                    if self.kept is not None:
                        own = _changed(folder / artifacts.RECORD) != self._before[folder]
                        self.kept.ended(folder, job.record, own=own)

    def _row(self, job: Job) -> str:
        """For example ``3/12 finished in 12 s: method=wanda seed=2, 109.648; 2 min left``."""
        result = job.error if job.status == artifacts.FAILED else job.objective
        what = ", ".join(filter(None, [job.overrides, result])) or job.name
        what = what if len(what) <= _LONGEST else f"{what[: _LONGEST - 3]}..."
        done, count, left = len(self._seconds), len(self.folders), self._left()
        row = f"{done}/{count} {job.status} in {duration(self._seconds[-1])}: {what}"
        return f"{row}; {duration(left)} left" if self._pending else row

    def _left(self) -> float:
        """Seconds until the last job ends, if it is with those to come as it was with those that have ended.

        Jobs whose result was taken from an earlier run count only where there are no others.
        """
        worked = [seconds for seconds in self._seconds if seconds >= _TAKEN] or self._seconds
        at_once = max(1.0, sum(self._seconds) / max(time.time() - self._begun, 1e-3))
        return len(self._pending) * sum(worked) / len(worked) / at_once

    def _took(self, folder: Path) -> float:
        """Seconds from Hydra's first file in a job's folder to the record."""
        began = (folder / ".hydra" / "config.yaml", folder / artifacts.RECORD)
        first, last = (_changed(path) for path in began)
        if first is None or last is None:
            return 0.0
        return max(0.0, (last - first) / 1e9)


def _changed(path: Path) -> int | None:
    """When a file was changed, in nanoseconds; ``None`` where there is none."""
    with suppress(OSError):
        return path.stat().st_mtime_ns
    return None


@contextmanager
def watching(watch: Watch, *, here: bool) -> Iterator[None]:
    """Looks now and then while jobs run.

    Args:
        watch: what looks.
        here: jobs run in this process, one after the other, and somebody looks whenever one has ended.
    """
    done = threading.Event()

    def look_again() -> None:
        while not done.wait(_PAUSE):
            with suppress(OSError):  # a file system that is gone for a moment
                watch.look()

    thread = None if here else threading.Thread(target=look_again, name="sweep", daemon=True)
    if thread is not None:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if thread is not None:
            thread.join()
        watch.look()
