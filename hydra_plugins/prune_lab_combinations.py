"""``hydra/sweeper=combinations``, the default: as Hydra's sweep over every combination, but faster, and to its end.

Hydra imports every plugin at every start, so nothing is imported here that is slow to import.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class CombinationsSweeper(BasicSweeper):
    """What jobs have in common is composed once, and jobs that fail keep no later batch from running."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes what Hydra knows of the command."""
        from prune_lab.compose import SweepConfigLoader

        context = HydraContext(SweepConfigLoader(hydra_context.config_loader), hydra_context.callbacks)
        super().setup(hydra_context=context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """Runs all jobs, and then raises what the first of those that failed raised.

        Raises:
            HydraException: a job cannot be composed; then none has run.
        """
        overrides = OverridesParser.create(self.hydra_context.config_loader).parse_overrides(
            [*self._parse_config(), *arguments]
        )
        batches = self.split_arguments(overrides, self.max_batch_size)
        for batch in batches:
            self.validate_batch_is_legal(batch)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        results: list[Sequence[JobReturn]] = []
        for batch in batches:
            results.append(self.launcher.launch(batch, initial_job_idx=sum(map(len, results))))
        for result in (each for some in results for each in some):
            _ = result.return_value  # raises
        return results
