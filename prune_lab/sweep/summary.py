"""What a sweep ends with: a line for each job, on the terminal and in ``sweep.csv``."""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prune_lab.errors import BadInput
from prune_lab.run.config import objectives_of
from prune_lab.run.own_files import mark_stale
from prune_lab.run.run_folder import check_free, refuse_inputs_inside, refuse_root, writing
from prune_lab.sweep import seeds
from prune_lab.sweep.kept import BestModel
from prune_lab.sweep.seeds import OverSeeds, over_seeds
from prune_lab.sweep.watch import Watch
from prune_lab.utils.files import write_csv
from prune_lab.utils.outputs import refuse_foreign
from prune_lab.utils.plain import plain_dict
from prune_lab.utils.secrets import redacted_override

_COMBINATIONS = "hydra_plugins.prune_lab_combinations."
COLUMNS = ("job", "overrides", "status", "objective", "error", "folder")
_MARKS = {"sweep.csv": ",".join(COLUMNS), seeds.FILE: ",".join(seeds.COLUMNS), "multirun.yaml": "prune_lab"}


@dataclass
class _Begun:
    """A sweep that began: its folder, the metrics that it looks at, and what watches its jobs, once these are known."""

    folder: Path
    objectives: list[str]
    kept: BestModel | None = None
    watch: Watch | None = None


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
            kept = BestModel(objectives[0]) if config.keep_models == "best" and config.save_model else None
            self.begun.append(_Begun(Path(config.hydra.sweep.dir), objectives, kept))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Hides secrets among the overrides, which Hydra prints where a job has failed, and looks how far jobs are."""
        job_return.overrides = [redacted_override(each) for each in job_return.overrides or ()]
        for begun in self.begun:  # none in the process of a job that was launched
            if begun.watch is not None:
                begun.watch.look()


@contextmanager
def _ending_the_command() -> Iterator[None]:
    try:
        yield
    except BadInput as error:
        sys.stderr.write(f"prune-lab: {error}\n")
        sys.exit(2)


def _settings(config: DictConfig) -> list[str]:
    return [str(name) for name in config if name != "hydra"]


def expect(folders: Sequence[Path], overrides: Sequence[Sequence[str]]) -> Watch:
    """Checks the folders of all jobs of the sweep that began last, prepares them, and returns what watches them.

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
    begun = SweepSummary.begun[-1] if SweepSummary.begun else _Begun(Path(), [])
    begun.watch = Watch(folders, overrides, begun.objectives, begun.kept)
    return begun.watch


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
        from prune_lab.sweep.ending import print_ending  # rich: a sweep's command imports this module first

        begun = SweepSummary.begun.pop()
        jobs = begun.watch.jobs() if begun.watch is not None else []
        if not jobs:
            continue
        rows = [(job.name, job.overrides, job.status, job.objective, job.error, job.folder) for job in jobs]
        write_csv(begun.folder / "sweep.csv", COLUMNS, rows)
        means = over_seeds(jobs)
        if means:
            write_csv(begun.folder / seeds.FILE, seeds.COLUMNS, [_cells(each) for each in means])
        print_ending(jobs, means, begun.folder, begun.kept)


def _cells(each: OverSeeds) -> tuple[object, ...]:
    deviation = "" if each.deviation is None else f"{each.deviation:.6g}"
    return each.settings, each.metric, each.seeds, f"{each.mean:.6g}", deviation
