"""A sweep whose launcher fails before any job has begun leaves nothing behind."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from prune_lab.run.own_files import is_stale, unmark_stale
from prune_lab.sweep.summary import SweepSummary
from prune_lab.utils.files import write_text

_SETTINGS, _SUBMITTED = "multirun.yaml", ".submitit"


@contextmanager
def taken_back_unless_begun(sweep: Path, jobs: Sequence[Path]) -> Iterator[None]:
    """Takes back what is written inside, and lets the sweep have no summary, if there is an error and no job has begun.

    Args:
        sweep: the folder of the sweep.
        jobs: those of its jobs, prepared by `prune_lab.sweep.summary.expect`.
    """
    made = [path for path in (sweep, *sweep.parents) if not path.exists()]
    settings = sweep / _SETTINGS
    before = settings.read_text(encoding="utf-8") if settings.is_file() else None
    try:
        yield
    except Exception:
        unsubmitted = _unsubmitted(sweep / _SUBMITTED)
        if unsubmitted is not None and not any(job.exists() and not is_stale(job) for job in jobs):
            for job in jobs:
                unmark_stale(job)
            if before is None:
                settings.unlink(missing_ok=True)
            else:
                write_text(settings, before)
            for path in unsubmitted:
                path.unlink()
            for path in (sweep / _SUBMITTED, *made):
                with suppress(OSError):  # something of others is there by now
                    path.rmdir()
            SweepSummary.begun.clear()
        raise


def _unsubmitted(folder: Path) -> list[Path] | None:
    """What submitit wrote for jobs that it could not submit; None where it has submitted some: they have folders."""
    found = list(folder.iterdir()) if folder.is_dir() else []
    return found if all(path.suffix == ".pkl" for path in found) else None
