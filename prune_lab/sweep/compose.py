"""Composes the jobs of a sweep quickly: what many jobs have in common is composed once.

Hydra takes a tenth of a second for each job, and composes it twice. Most jobs of a sweep differ in values only, which
do not decide which files are composed.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from prune_lab.errors import BadInput, Reported
from prune_lab.run.config import RunConfig
from prune_lab.run.loader import GuardedLoader
from prune_lab.run.messages import mistakes_in
from prune_lab.run.mixed_sources import names_sources
from prune_lab.utils.plain import plain_dict


class SweepConfigLoader(GuardedLoader):
    """Hydra's loader, with a memory for what was composed.

    Gives what Hydra's own gives, which a test holds against it; files that change during a sweep are read once.
    """

    def __init__(self, loader: ConfigLoader):
        super().__init__(config_search_path=loader.get_search_path())
        self._composed: dict[tuple[str, ...], bytes] | None = {}

    def __getstate__(self) -> dict[str, object]:
        """Without a memory: a process that gets the loader composes one job.

        Hydra scans its plugins again there, so that settings which a launcher has declared as a class would not be
        instances of the class that pickle finds.
        """
        return self.__dict__ | {"_composed": None}

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Composes a job.

        Args:
            master_config: of the sweep, with its settings of Hydra.
            sweep_overrides: of the job.

        Raises:
            HydraException: an override cannot be used.
        """
        if self._composed is None:
            return super().load_sweep_config(master_config, sweep_overrides)
        overrides = OverridesParser.create().parse_overrides(sweep_overrides)
        values = [each for each in overrides if self._is_value(each)]
        changed = any(each.type != OverrideType.CHANGE for each in overrides)  # `+` and `~`: their order matters
        if changed or not values or master_config.hydra.searchpath:  # files from there, which `_is_value` cannot see
            return super().load_sweep_config(master_config, sweep_overrides)
        shape = [each for each in sweep_overrides if each not in {value.input_line for value in values}]
        config = self._load(master_config, shape, self._composed)
        self._apply_overrides_to_config(values, config)
        _note(overrides, config)
        return config

    def _load(self, master_config: DictConfig, shape: list[str], composed: dict[tuple[str, ...], bytes]) -> DictConfig:
        typed: Any = OmegaConf.to_container(master_config.hydra.overrides.hydra, resolve=False)
        key = (*typed, *shape)  # not resolved: `${hydra:job.num}` means something in a job only
        if key not in composed:
            composed[key] = pickle.dumps(super().load_sweep_config(master_config, shape))
        config: DictConfig = pickle.loads(composed[key])
        _ = master_config.hydra.sweep.dir  # its ${now:...} is kept for the jobs from here on
        OmegaConf.copy_cache(from_config=master_config, to_config=config)
        return config

    def _is_value(self, override: Override) -> bool:
        """Whether it sets a value, and does not choose a file: Hydra's own rule, and that of `mixed_sources`."""
        if override.package is not None or override.is_hydra_override() or names_sources(override):
            return False
        return isinstance(override.value(), dict) or not self.repository.group_exists(override.key_or_group)


def job_folders(loader: ConfigLoader, master: DictConfig, jobs: Sequence[Sequence[str]]) -> list[Path]:
    """Composes the jobs of a sweep, and returns the folder of each, as Hydra will have it.

    Args:
        loader: of the sweep.
        master: the configuration of the sweep.
        jobs: the overrides of each job, in order.

    Raises:
        HydraException: a job cannot be composed.
        BadInput: likewise.
    """
    hydra_config, folders = HydraConfig.instance(), []
    before = hydra_config.cfg
    try:
        for number, overrides in enumerate(jobs):
            config = _composed(loader, master, overrides)
            with open_dict(config.hydra.job):
                config.hydra.job.id, config.hydra.job.num = f"job_id_for_{number}", number
            hydra_config.set_config(config)
            sweep = config.hydra.sweep
            folders.append(Path(str(sweep.dir), str(sweep.subdir)))
    finally:
        hydra_config.cfg = before
    return folders


def _composed(loader: ConfigLoader, master: DictConfig, overrides: Sequence[str]) -> DictConfig:
    try:
        return loader.load_sweep_config(master, list(overrides))
    except ValueError as error:
        if isinstance(error, Reported) or "digits" not in str(error):  # a number of thousands, in a list of jobs
            raise
        raise BadInput(mistakes_in(overrides, sweep=True)) from error


@contextmanager
def composing(folder: Path) -> Iterator[Callable[[Sequence[str]], RunConfig]]:
    """Yields a function that composes the settings of a run from its overrides.

    Args:
        folder: of the configuration.
    """
    with initialize_config_dir(str(folder), version_base="1.3"):
        ordinary = GlobalHydra.instance().config_loader()
        loader = SweepConfigLoader(ordinary)
        master = ordinary.load_configuration("config", [], RunMode.RUN)

        def compose(overrides: Sequence[str]) -> RunConfig:
            config = loader.load_sweep_config(master, list(overrides))
            choices = plain_dict(config.hydra.runtime.choices)
            with open_dict(config):
                del config["hydra"]
            return RunConfig.of(config, choices=choices, overrides=overrides)

        yield compose


def _note(overrides: Sequence[Override], config: DictConfig) -> None:
    """What Hydra notes of the overrides in the configuration."""
    own = [each for each in overrides if not each.is_hydra_override()]
    with open_dict(config.hydra):
        config.hydra.overrides.task = [each.input_line for each in own]
        style = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            own, exclude_keys=style.exclude_keys, item_sep=style.item_sep, kv_sep=style.kv_sep
        )
