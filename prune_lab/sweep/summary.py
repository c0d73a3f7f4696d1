"""What a sweep ends with: a line for each job, on the terminal and in ``sweep.csv``."""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, filter_overrides
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prune_lab.errors import BadInput
from prune_lab.run import artifacts
from prune_lab.run.config import objectives_of
from prune_lab.run.own_files import is_stale, mark_stale
from prune_lab.run.record import read_record
from prune_lab.run.run_folder import check_free, refuse_inputs_inside, refuse_root, writing
from prune_lab.utils.files import write_csv
from prune_lab.utils.outputs import refuse_foreign
from prune_lab.utils.plain import plain_dict
from prune_lab.utils.secrets import redacted_override

_MOST_ROWS = 40  # on the terminal; more are in the file
_COMBINATIONS = "hydra_plugins.prune_lab_combinations."
COLUMNS = ("job", "overrides", "status", "objective", "error", "folder")
_MARKS = {"sweep.csv": ",".join(COLUMNS), "multirun.yaml": "prune_lab"}


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


@dataclass
class _Begun:
    """A sweep that began: its folder, the metrics that it looks at, and folder and overrides of each job."""

    folder: Path
    objectives: list[str]
    jobs: list[tuple[Path, list[str]]] = field(default_factory=list)


class SweepSummary(Callback):
    """Looks at the folder before Hydra writes there, and remembers that a sweep began.

    Hydra calls ``on_multirun_end`` only where no job failed, so that the command itself calls `summarise`. A search has
    a summary of its own.
    """

    begun: ClassVar[list[_Begun]] = []

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Ends the command where it may not write into the run folder; Hydra turns exceptions into warnings."""
        HydraConfig.instance().set_config(config)
        folder = Path(config.hydra.run.dir)
        with _ending_the_command():
            check_free(folder)
            with suppress(OmegaConfBaseException):  # is told by the run
                refuse_inputs_inside(folder, plain_dict(OmegaConf.masked_copy(config, _settings(config)), resolve=True))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Takes what the configuration says, and ends the command likewise."""
        with _ending_the_command():
            refuse_root(Path(config.hydra.sweep.dir))
        if str(config.hydra.sweeper._target_).startswith(_COMBINATIONS):
            objectives = objectives_of(plain_dict(config)["objective"])
            self.begun.append(_Begun(Path(config.hydra.sweep.dir), objectives))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Hides secrets among the overrides, which Hydra prints where a job has failed."""
        job_return.overrides = [redacted_override(each) for each in job_return.overrides or ()]


@contextmanager
def _ending_the_command() -> Iterator[None]:
    try:
        yield
    except BadInput as error:
        sys.stderr.write(f"prune-lab: {error}\n")
        sys.exit(2)


def _settings(config: DictConfig) -> list[str]:
    return [str(name) for name in config if name != "hydra"]


def expect(folders: Sequence[Path], overrides: Sequence[Sequence[str]]) -> None:
    """Checks the folders of all jobs of the sweep that began last, and prepares them.

    Args:
        folders: of the jobs, in order.
        overrides: of each.

    Raises:
        BadInput: two jobs would write into one folder, or one of the folders is in use, holds somebody's files, or does
            not lie below that of the sweep.
    """
    for path, times in Counter(folder.resolve() for folder in folders).items():
        if times > 1:
            raise BadInput(
                f"{times} jobs of this sweep would write into {path}; give each a folder of its own with "
                "hydra.sweep.subdir='${hydra:job.num}', which is the default"
            )
    if SweepSummary.begun:
        _check_below(SweepSummary.begun[-1].folder, folders)
    for folder in folders:
        check_free(folder)
    if SweepSummary.begun:
        remedy = "set hydra.sweep.dir=DIR to another folder"
        refuse_foreign(SweepSummary.begun[-1].folder, _MARKS, remedy)
    for folder in folders:
        with writing(folder):
            mark_stale(folder)
    if SweepSummary.begun:
        SweepSummary.begun[-1].jobs += zip(folders, map(list, overrides), strict=True)


def _check_below(sweep: Path, folders: Sequence[Path]) -> None:
    """A job whose folder lies elsewhere would write where nobody expects it; in the sweep's own, among its files."""
    for folder in folders:
        if Path(os.path.abspath(sweep)) not in Path(os.path.abspath(folder)).parents:
            raise BadInput(
                f"a job of this sweep would write into {folder}, which does not lie below the sweep's folder {sweep}; "
                "leave out hydra.sweep.subdir, or give one like '${hydra:job.num}'"
            )


def summarise() -> None:
    """Prints and writes what became of the jobs of a sweep that has ended; reads the folders, as jobs run anywhere."""
    while SweepSummary.begun:
        begun = SweepSummary.begun.pop()
        jobs = jobs_of(begun.jobs, begun.objectives)
        if jobs:
            rows = [(job.name, job.overrides, job.status, job.objective, job.error, job.folder) for job in jobs]
            write_csv(begun.folder / "sweep.csv", COLUMNS, rows)
            _print(jobs, begun.folder)


def jobs_of(jobs: Sequence[tuple[Path, list[str]]], objectives: list[str]) -> list[Job]:
    """Returns the jobs of a sweep, each with the settings that not all of them have.

    Args:
        jobs: folder and overrides of each.
        objectives: the metrics that the sweep looks at.
    """
    overrides = [[redacted_override(one) for one in filter_overrides(each)] for _, each in jobs]
    common = set(overrides[0]).intersection(*overrides) if len(overrides) > 1 else set()
    own = [" ".join(each for each in some if each not in common) for some in overrides]
    return [_job(path, mine, objectives) for (path, _), mine in zip(jobs, own, strict=True)]


def _job(folder: Path, overrides: str, objectives: list[str]) -> Job:
    record: dict[str, Any] = {"status": "no record", "metrics": {}}
    if not is_stale(folder):
        with suppress(OSError, ValueError):
            record = read_record(folder)
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
