"""What a sweep ends with: a line for each job, on the terminal and in ``sweep.csv``."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from prune_lab.run import artifacts
from prune_lab.run.config import objectives_of
from prune_lab.run.record import read_record
from prune_lab.utils.files import write_csv
from prune_lab.utils.plain import plain_dict
from prune_lab.utils.secrets import redacted_override

_MOST_ROWS = 40  # on the terminal; more are in the file
_COMBINATIONS = ("hydra_plugins.prune_lab_combinations.", "hydra._internal.")  # ours and Hydra's own
COLUMNS = ("job", "overrides", "status", "objective", "error", "folder")


@dataclass(frozen=True)
class Job:
    """A job of a sweep, by what is in its folder.

    Attributes:
        name: of its folder.
        overrides: that not all jobs have.
        status: of its record; ``no record`` where there is none: it was killed, or never began.
        objective: the metrics that the sweep looks at, as text.
        error: the first line of what went wrong.
        folder: where it ran.
    """

    name: str
    overrides: str
    status: str
    objective: str
    error: str
    folder: Path


class SweepSummary(Callback):
    """Remembers that a sweep began; a search has a summary of its own.

    Hydra calls ``on_multirun_end`` only where no job failed, so that the command itself calls `summarise`.
    """

    begun: ClassVar[list[tuple[Path, list[str]]]] = []  # folder and objectives

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Takes what the configuration says."""
        if str(config.hydra.sweeper._target_).startswith(_COMBINATIONS):
            self.begun.append((Path(config.hydra.sweep.dir), objectives_of(plain_dict(config)["objective"])))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Hides secrets among the overrides, which Hydra prints where a job has failed."""
        job_return.overrides = [redacted_override(each) for each in job_return.overrides or ()]


def summarise() -> None:
    """Prints and writes what became of the jobs of a sweep that has ended; reads the folders, as jobs run anywhere."""
    while SweepSummary.begun:
        folder, objectives = SweepSummary.begun.pop()
        jobs = jobs_of(folder, objectives)
        if jobs:
            rows = [(job.name, job.overrides, job.status, job.objective, job.error, job.folder) for job in jobs]
            write_csv(folder / "sweep.csv", COLUMNS, rows)
            _print(jobs, folder)


def jobs_of(folder: Path, objectives: list[str]) -> list[Job]:
    """The jobs of a sweep folder in their order, each with the settings that not all of them have."""
    paths = [path for path in folder.iterdir() if (path / ".hydra").is_dir()] if folder.is_dir() else []
    paths.sort(key=lambda path: (len(path.name), path.name))
    overrides = [[str(each) for each in OmegaConf.load(path / ".hydra" / "overrides.yaml")] for path in paths]
    common = set(overrides[0]).intersection(*overrides) if len(overrides) > 1 else set()
    own = [" ".join(each for each in some if each not in common) for some in overrides]
    return [_job(path, mine, objectives) for path, mine in zip(paths, own, strict=True)]


def _job(folder: Path, overrides: str, objectives: list[str]) -> Job:
    try:
        record = read_record(folder)
    except (OSError, ValueError):
        record = {"status": "no record", "metrics": {}}
    metrics = record["metrics"]
    found = [f"{metrics[name]:.6g}" for name in objectives if name in metrics]
    error = str(record.get("error", "")).partition("\n")[0]
    return Job(folder.name, overrides, record["status"], ", ".join(found), error, folder)


def _print(jobs: list[Job], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    counts = Counter(job.status for job in jobs)
    shown = jobs if len(jobs) <= _MOST_ROWS else [job for job in jobs if job.status != artifacts.FINISHED][:_MOST_ROWS]
    table = Table(
        title=f"{len(jobs)} jobs: " + ", ".join(f"{count} {status}" for status, count in sorted(counts.items())),
        title_justify="left",
    )
    for column in ("job", "settings", "status", "objective or error"):
        table.add_column(column, overflow="fold")
    for job in shown:
        cells = (job.name, job.overrides, job.status, job.error if job.status == artifacts.FAILED else job.objective)
        table.add_row(*map(Text, cells))  # as they are: brackets would be read as a style
    console = Console()
    console.print(table)
    console.print(f"all jobs: {folder / 'sweep.csv'}", soft_wrap=True, highlight=False)
