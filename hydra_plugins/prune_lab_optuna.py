"""``hydra/sweeper=optuna``: Hydra makes plugins below the namespace ``hydra_plugins`` only.

It imports all of them at every start, so nothing is imported here that is slow to import; the work is done in
`prune_lab.sweep.search`.
"""

from typing import Any

from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """Launches the trials of a study; its settings are those of `prune_lab.sweep.search.settings.SearchSettings`."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings  # checked in `sweep`, where a message reaches the user as it is
        self.launcher: Launcher | None = None

    @classmethod
    def takes(cls) -> list[str]:
        """The names of its settings."""
        from dataclasses import fields

        from prune_lab.sweep.search.settings import SearchSettings

        return [field.name for field in fields(SearchSettings)]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes what Hydra knows of the command."""
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Searches.

        Raises:
            BadInput: the settings, the space or the study cannot be used.
            RunFailed: a trial failed.
        """
        from prune_lab.utils.extras import bringing

        with bringing("optuna", "hydra/sweeper=optuna"):
            from prune_lab.sweep.search.command import search
        assert self.hydra_context and self.config is not None and self.launcher is not None  # Hydra has called `setup`
        search(self.settings, arguments, self.config, self.hydra_context.config_loader, self.launcher)
