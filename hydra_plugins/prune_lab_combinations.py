"""The default of ``prune-lab -m``: as Hydra's sweep over every combination, but faster, and to its end.

``hydra/sweeper=cells``: the same, over jobs that a file lists.

Hydra imports every plugin at every start, so nothing is imported here that is slow to import.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


def use_by_default() -> None:
    """Takes the place of Hydra's own sweeper (``hydra/sweeper=basic``), in this process.

    An ``override`` in ``conf/config.yaml`` would win over that of an experiment that chooses another sweeper.
    """
    Plugins.instance()  # now, as it would put Hydra's own in our place later
    node = {"_target_": f"{__name__}.{CombinationsSweeper.__name__}", "max_batch_size": None, "params": None}
    ConfigStore.instance().store(group="hydra/sweeper", name="basic", node=node, provider="prune_lab")


class CombinationsSweeper(BasicSweeper):
    """What jobs have in common is composed once, and jobs that fail keep no later batch from running."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes what Hydra knows of the command."""
        from prune_lab.sweep.compose import SweepConfigLoader

        context = HydraContext(SweepConfigLoader(hydra_context.config_loader), hydra_context.callbacks)
        super().setup(hydra_context=context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """Runs all jobs, and then raises what the first of those that failed raised.

        Raises:
            HydraException: a job cannot be composed; then none has run.
            BadInput: there are no jobs, or far too many, two would write into one folder, or one may not write into its
                own; likewise.
        """
        from prune_lab.run.loader import save_config
        from prune_lab.sweep.compose import job_folders
        from prune_lab.sweep.jobs import value_of
        from prune_lab.sweep.launch.engine import check_launcher, launching
        from prune_lab.sweep.summary import expect
        from prune_lab.sweep.undo import taken_back_unless_begun
        from prune_lab.sweep.watch import watching

        assert self.config is not None and self.launcher is not None  # Hydra has called `setup`
        assert self.hydra_context is not None
        check_launcher(self.config)
        batches = self.batches(arguments)
        jobs = [job for batch in batches for job in batch]
        folder, folders = (
            Path(self.config.hydra.sweep.dir),
            job_folders(self.hydra_context.config_loader, self.config, jobs),
        )
        watch = expect(folders, jobs)
        here = str(self.config.hydra.launcher._target_).endswith(".BasicLauncher")
        results: list[Sequence[JobReturn]] = []
        with taken_back_unless_begun(folder, folders):
            save_config(self.config, "multirun.yaml", folder)
            for batch in batches:
                with launching(self.config), watching(watch, here=here):
                    results.append(self.launcher.launch(batch, initial_job_idx=sum(map(len, results))))
        for result in (each for some in results for each in some):
            value_of(result)  # raises
        return results

    def check(self) -> None:
        """Checks the settings.

        Raises:
            BadInput: one is not allowed.
        """
        from prune_lab.errors import BadInput
        from prune_lab.run.annotations import mistake_of

        for key, hint in (("max_batch_size", int | None), ("params", Mapping[str, Any] | None)):
            if mistake := mistake_of(f"hydra.sweeper.{key}", getattr(self, key), hint):
                raise BadInput(mistake)
        if self.max_batch_size is not None and self.max_batch_size < 1:
            raise BadInput(
                f"hydra.sweeper.max_batch_size={self.max_batch_size} is not allowed; allowed: whole numbers of at "
                "least 1, or null"
            )

    def batches(self, arguments: list[str]) -> list[list[list[str]]]:
        """The overrides of the jobs, in portions for the launcher."""
        from prune_lab.sweep.size import check_size

        assert self.hydra_context is not None  # Hydra has called `setup`
        self.check()
        overrides = OverridesParser.create(self.hydra_context.config_loader).parse_overrides(
            [*self._parse_config(), *arguments]
        )
        check_size(overrides)
        found: list[list[list[str]]] = self.split_arguments(overrides, self.max_batch_size)
        return found


class CellsSweeper(CombinationsSweeper):
    """Runs the jobs of a file: a JSON list with a list of overrides for each; `prune-lab-table` writes it."""

    def __init__(self, cells: str, max_batch_size: int | None = None, params: dict[str, str] | None = None):
        super().__init__(max_batch_size, params)
        self.cells = cells

    def batches(self, arguments: list[str]) -> list[list[list[str]]]:
        """Every job gets the command line's overrides, too."""
        from prune_lab.errors import BadInput
        from prune_lab.sweep.size import check_count

        self.check()
        try:
            jobs = [[*job, *arguments] for job in json.loads(Path(self.cells).read_text(encoding="utf-8"))]
        except (OSError, TypeError, ValueError) as error:
            raise BadInput(
                f"hydra.sweeper.cells={self.cells} cannot be read; it is a JSON list with a list of overrides for each "
                f"job ({error})"
            ) from error
        check_count(len(jobs), f"hydra.sweeper.cells={self.cells} lists {len(jobs)}")
        return [list(batch) for batch in self.split_overrides_to_chunks(jobs, self.max_batch_size)]
