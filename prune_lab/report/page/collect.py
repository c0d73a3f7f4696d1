"""Finds the runs below a folder, and reads again only what has changed since it last looked."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from prune_lab.report.page.run import FILES, ReportRun, read_run, told_apart
from prune_lab.run import artifacts
from prune_lab.run.record import Unreadable
from prune_lab.utils.text import one_line

MOST_METRICS = 5000
"""Different metrics that the page has columns for."""
# parts of a run folder without runs in them
_NOT_ENTERED = (artifacts.MODEL, artifacts.ADAPTER, artifacts.BLOCKS, artifacts.TRAINING, "wandb")


@dataclass
class Collection:
    """The runs below a folder.

    Args:
        folder: to look into, however deep.
        runs: those with a readable record, by their folders; one that was taken from an earlier one is left out.
        taken: how many were.
        unreadable: the others, with the reasons.
        open: folders of runs that have begun and left no record yet: at work, or killed.
    """

    folder: Path
    runs: list[ReportRun] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    taken: int = 0
    _known: dict[Path, tuple[object, ReportRun | Unreadable]] = field(default_factory=dict, repr=False)

    def refresh(self) -> bool:
        """Looks again; returns whether anything is different."""
        known, opened = {}, []
        for path in self._folders():
            stamp = _stamp(path)
            before = self._known.get(path)
            if stamp is None:
                opened.append(self._name(path))
            else:
                known[path] = before if before and before[0] == stamp else (stamp, self._read(path))
        changed = opened != self.open or known.keys() != self._known.keys()
        changed = changed or any(known[path] is not self._known[path] for path in known)
        self._known, self.open = known, opened
        read = _fitting({self._name(path): found for path, (_, found) in known.items()})
        found = [each for each in read.values() if isinstance(each, ReportRun)]
        self.runs = told_apart(_distinct(found))
        self.taken = len(found) - len(self.runs)
        self.unreadable = [
            (one_line(name), one_line(str(found))) for name, found in read.items() if isinstance(found, Unreadable)
        ]
        return changed

    @property
    def counts(self) -> dict[str, int]:
        """How many runs finished, failed and so on; only what there is."""
        found = Counter(run.status for run in self.runs)
        order = {name: number for number, name in enumerate(get_args(artifacts.Status))}
        counts = {name: found[name] for name in sorted(found, key=lambda name: (order.get(name, len(order)), name))}
        taken = {"taken from these": self.taken} if self.taken else {}
        return {**counts, **taken, "unreadable": len(self.unreadable), "without a record": len(self.open)}

    def _folders(self) -> Iterator[Path]:
        """Every folder with a record, or with the settings that a run writes first; in the order of their paths."""
        for root, folders, files in os.walk(self.folder):
            is_run = artifacts.RECORD in (*files, *folders) or {artifacts.CONFIG, artifacts.ENVIRONMENT} <= set(files)
            skipped = _NOT_ENTERED if is_run else ()
            folders[:] = sorted(
                (name for name in folders if not name.startswith(".") and name not in skipped),
                key=lambda name: (len(name), name) if name.isdigit() else (0, name),  # jobs of a sweep are numbered
            )
            if is_run:
                yield Path(root)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _read(self, path: Path) -> ReportRun | Unreadable:
        try:
            return read_run(path, self._name(path))
        except Unreadable as error:
            return error
        except OSError as error:
            return Unreadable(f"it cannot be read: {error.strerror or error}")


def _stamp(path: Path) -> tuple[object, ...] | None:
    """Times and sizes of what a run is read from; ``None`` without a record."""
    found: list[tuple[int, int] | None] = []
    for name in FILES:
        try:
            status = (path / name).stat()
            found.append((status.st_mtime_ns, status.st_size))
        except OSError:
            found.append(None)
    return tuple(found) if os.path.lexists(path / FILES[0]) else None  # a link to nothing is no run at work


def _fitting(read: Mapping[str, ReportRun | Unreadable]) -> dict[str, ReportRun | Unreadable]:
    """The runs whose metrics fit into the page, those with few of them first; the others as unreadable."""
    runs = [run for run in read.values() if isinstance(run, ReportRun)]
    metrics: set[str] = set()
    fitting = dict(read)
    for run in sorted(runs, key=lambda run: len(run.metrics)):
        if len(metrics.union(run.metrics)) > MOST_METRICS:
            fitting[run.folder] = Unreadable(
                f"with its {len(run.metrics):,} metrics there would be more than the {MOST_METRICS:,} different ones "
                "that fit into the page"
            )
        else:
            metrics.update(run.metrics)
    return fitting


def _distinct(runs: list[ReportRun]) -> list[ReportRun]:
    """The runs without those that are the same as an earlier one, by their identities: another folder of one result."""
    seen: dict[str, ReportRun] = {}
    for run in runs:
        seen.setdefault(run.identity if run.identity and run.status == artifacts.FINISHED else f"in {run.folder}", run)
    return list(seen.values())
