"""The jobs of a sweep, by what is in their folders: they may have run anywhere."""

from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, filter_overrides

from prune_lab.run.own_files import is_stale
from prune_lab.run.record import read_record
from prune_lab.utils.secrets import redacted_override


@dataclass(frozen=True)
class Job:
    """A job of a sweep.

    Attributes:
        name: of its folder.
        overrides: that not all jobs have.
        status: of its record; ``no record`` where there is none: it was killed, or never began.
        values: of the metrics that the sweep looks at, by name, as far as they were measured.
        error: the first line of what went wrong.
        folder: where it ran.
    """

    name: str
    overrides: str
    status: str
    values: dict[str, float]
    error: str
    folder: Path
    record: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def objective(self) -> str:
        """Its values as text."""
        return ", ".join(f"{value:.6g}" for value in self.values.values())

    @property
    def ended(self) -> bool:
        """Whether it has left a record."""
        return self.status != _NO_RECORD


_NO_RECORD = "no record"


def own_overrides(jobs: Sequence[Sequence[str]]) -> list[str]:
    """The overrides of each job of a sweep that not all of them have, without secrets.

    Args:
        jobs: all overrides of each.
    """
    overrides = [[redacted_override(one) for one in filter_overrides(each)] for each in jobs]
    common = set(overrides[0]).intersection(*overrides) if len(overrides) > 1 else set()
    return [" ".join(each for each in some if each not in common) for some in overrides]


def value_of(result: JobReturn) -> Any:
    """Returns what a job returned, or raises its error, without Hydra's line about it: the log has said more."""
    with redirect_stderr(StringIO()):
        return result.return_value


def job_in(folder: Path, overrides: str, objectives: Sequence[str]) -> Job:
    """What became of a job so far.

    Args:
        folder: where it runs.
        overrides: see `Job`.
        objectives: the metrics that the sweep looks at.
    """
    record: dict[str, Any] = {"status": _NO_RECORD, "metrics": {}}
    if not is_stale(folder):
        with suppress(OSError, ValueError):
            record = read_record(folder)
    metrics = record["metrics"]
    values = {name: float(metrics[name]) for name in objectives if name in metrics}
    error = str(record.get("error", "")).partition("\n")[0]
    return Job(folder.name, overrides, record["status"], values, error, folder, record)
