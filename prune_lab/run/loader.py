"""Hydra's loader of configurations, which vets what Hydra itself would be asked to make before Hydra makes it.

Hydra offers no place between composing a configuration and acting on it: it makes callbacks, sweepers and launchers and
configures the log before a program's own code is called. So the command puts this loader in the place of Hydra's.
"""

from pathlib import Path
from typing import Any

import hydra._internal.hydra
import hydra.core.utils
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from prune_lab.run.config_files import check_lengths, reading_clearly
from prune_lab.run.hydra_vetting import vet_hydra, vet_search_path
from prune_lab.run.mixed_sources import sources_named
from prune_lab.run.model_ids import readable, spelled_out
from prune_lab.run.resolvers import register_resolvers
from prune_lab.utils.files import write_text
from prune_lab.utils.paths import local_path
from prune_lab.utils.secrets import redacted_override, without_secrets

_PATHS = (
    "hydra.run.dir", "hydra.sweep.dir", "hydra.sweeper.cells", "hydra.sweeper.folder", "hydra.sweeper.storage",
    "hydra.launcher.submitit_folder",
)  # fmt: skip


class GuardedLoader(ConfigLoaderImpl):
    """Composes as Hydra's own loader; refuses what a file may not ask of Hydra."""

    def load_configuration(self, *args: Any, **kwargs: Any) -> DictConfig:
        """Composes a configuration.

        Raises:
            HydraException: it cannot be composed.
            BadInput: a file cannot be read, or asks Hydra for more than it may.
        """
        with reading_clearly():
            cfg = super().load_configuration(*args, **kwargs)
        check_lengths(OmegaConf.to_container(cfg, resolve=False))
        vet_hydra(cfg)
        _expand_home(cfg)
        return cfg

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Composes a job of a sweep, which may choose files of its own.

        Raises:
            HydraException: it cannot be composed.
            BadInput: a file cannot be read.
        """
        with reading_clearly():
            cfg: DictConfig = super().load_sweep_config(master_config, sweep_overrides)
        return cfg

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        """Spells out models and sources of text that are named directly, also in jobs of sweeps and in tables."""
        overrides = [readable(line) for line in overrides]
        parsed, repo = super()._parse_overrides_and_create_caching_repo(config_name, overrides)
        lines = [line for each in parsed for line in spelled_out(each, lambda name: _is_choice(repo, "model", name))]
        lines += sources_named(parsed, lambda name: _is_choice(repo, "data", name))
        return (parsed if lines == overrides else OverridesParser.create().parse_overrides(lines)), repo

    def _process_config_searchpath(
        self, config_name: str | None, parsed_overrides: list[Override], repo: CachingConfigRepository
    ) -> None:
        """Looks at the search path of a file first: Hydra imports the packages that it names."""
        loaded = None if config_name is None else repo.load_config(config_path=config_name)
        if loaded is not None and OmegaConf.is_dict(loaded.config):
            found = OmegaConf.select(loaded.config, "hydra.searchpath", throw_on_resolution_failure=False)
            vet_search_path(OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found)
        super()._process_config_searchpath(config_name, parsed_overrides, repo)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A job's process gets its loader from the sweep's; the guards are put up with it."""
        self.__dict__.update(state)
        guard_hydra()


def _is_choice(repo: CachingConfigRepository, group: str, name: str) -> bool:
    return repo.config_exists(f"{group}/{name}")


def _expand_home(cfg: DictConfig) -> None:
    """Lets ``~`` be the home folder in what Hydra, sweepers and launchers write: Hydra would make a folder ``~``."""
    for key in _PATHS:
        section, _, name = key.rpartition(".")
        node = OmegaConf.select(cfg, section)
        plain: Any = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_dict(node) else {}
        value = plain.get(name)
        if isinstance(value, str):
            start, database, path = value.rpartition("sqlite:///")
            if path.startswith("~") and not start:
                with open_dict(cfg):
                    node[name] = f"{database}{local_path(path)}"


def guard_hydra() -> None:
    """Lets Hydra, in this process, compose with `GuardedLoader`, and write its files without secrets."""
    register_resolvers()
    hydra._internal.hydra.ConfigLoaderImpl = GuardedLoader  # type: ignore[attr-defined]  # what it imports
    hydra.core.utils._save_config = save_config


def save_config(cfg: DictConfig, filename: str, output_dir: Path) -> None:
    """Writes a file of ``.hydra``, or ``multirun.yaml``, without secrets; in the place of Hydra's own function.

    Args:
        cfg: settings, or the list of overrides.
        filename: of the file.
        output_dir: its folder; made if need be.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=False, enum_to_str=True)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_text(output_dir / filename, OmegaConf.to_yaml(OmegaConf.create(_without_secrets(plain))))


def _without_secrets(plain: Any) -> Any:
    """Settings without secrets; the overrides among Hydra's hold them in another form."""
    if isinstance(plain, list):
        return [redacted_override(each) if isinstance(each, str) else each for each in plain]
    of_hydra = plain.get("hydra")
    if isinstance(of_hydra, dict) and isinstance(of_hydra.get("overrides"), dict):
        overrides = {kind: _without_secrets(given) for kind, given in of_hydra["overrides"].items()}
        plain = plain | {"hydra": of_hydra | {"overrides": overrides}}
    return without_secrets(plain)
