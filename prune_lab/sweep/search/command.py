"""``prune-lab -m hydra/sweeper=optuna``: from settings and arguments to a search."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import CategoricalDistribution

from prune_lab.errors import BadInput, BadSetting, located
from prune_lab.run.config import is_beside_numbers, objectives_of
from prune_lab.sweep.kept import BestModel
from prune_lab.sweep.launch.engine import check_launcher, launching
from prune_lab.sweep.search.loop import Jobs, run_trials
from prune_lab.sweep.search.report import MARKS
from prune_lab.sweep.search.samplers import check_sampler
from prune_lab.sweep.search.settings import SearchSettings
from prune_lab.sweep.search.space import Space, parse_space
from prune_lab.sweep.search.storage import opened
from prune_lab.sweep.search.study import open_study
from prune_lab.utils.checks import MOST_SEED
from prune_lab.utils.outputs import refuse_foreign
from prune_lab.utils.processes import processes
from prune_lab.utils.secrets import without_secrets


@located("hydra.sweeper")
def search(
    given: Mapping[str, Any], arguments: Sequence[str], config: DictConfig, loader: ConfigLoader, launcher: Launcher
) -> None:
    """Searches until the study has the trials that it should have.

    Args:
        given: the settings, as in `SearchSettings`.
        arguments: the command's overrides, without those of Hydra.
        config: the composed configuration, with Hydra's own.
        loader: composes the configuration of a trial.
        launcher: runs jobs.

    Raises:
        BadInput: the settings, the space or the study cannot be used, or the folder holds files of others.
        RunFailed: a trial failed.
    """
    if processes().count > 1:
        raise BadInput(
            "hydra/sweeper=optuna does not run in several processes (accelerate launch, torchrun); start one, which "
            "launches its trials with hydra.sweeper.n_jobs=N and hydra/launcher=..."
        )
    check_launcher(config)
    settings = SearchSettings(**{key: _plain(value) for key, value in given.items()})
    space = parse_space(settings.params, arguments, OverridesParser.create(config_loader=loader))

    def compose(overrides: Sequence[str]) -> DictConfig:
        return loader.load_sweep_config(config, list(overrides))

    def launch(jobs: Sequence[Sequence[str]], first: int) -> Sequence[JobReturn]:
        with launching(config):
            return launcher.launch(jobs, first)

    base, complete = _without_searched(space, compose)
    objectives = objectives_of(base.objective)
    if settings.sampling.seed is None:
        settings = replace(settings, sampler={**settings.sampler, "seed": _seed_of(base)})
    check_sampler(settings.sampling, space.searched, objectives)
    if settings.pruner is not None and len(objectives) > 1:
        raise BadSetting(
            settings,
            "stop_early",
            f"is not allowed with objective={','.join(objectives)}: trials with several objectives cannot be stopped "
            "early; use {at}.stop_early=null, or one objective",
        )
    defaults = space.defaults(base) if complete and settings.first == "defaults" else None
    cwd, folder = Path(config.hydra.runtime.cwd), Path(config.hydra.sweep.dir).absolute()
    refuse_foreign(folder, MARKS, "set hydra.sweeper.folder=DIR")
    folder.mkdir(parents=True, exist_ok=True)
    with opened(settings.storage, cwd) as storage:
        study = open_study(storage, settings, space, _fixed_settings(base, space), objectives)
        if not study.trials and defaults is not None:
            study.enqueue_defaults(defaults)
        if not settings.on_url or settings.repeat_running:
            study.repeat_running()
        better = "lower" if study.directions[0] == "minimize" else "higher"
        kept = BestModel(objectives[0], better) if base.keep_models == "best" and base.save_model else None
        run_trials(study, Jobs(compose, launch), folder, kept)


def _without_searched(space: Space, compose: Callable[[Sequence[str]], DictConfig]) -> tuple[DictConfig, bool]:
    """The configuration with all that is fixed, and whether it is one: some keys exist in a searched choice only."""
    try:
        return compose(space.fixed), True
    except HydraException:
        some = {key: d.choices[0] for key, d in space.searched.items() if isinstance(d, CategoricalDistribution)}
        return compose([*space.fixed, *(f"{key}={value}" for key, value in some.items())]), False


def _seed_of(base: DictConfig) -> int:
    seed = base.seed
    return seed if type(seed) is int and 0 <= seed <= MOST_SEED else 0  # the trials themselves refuse any other


def _fixed_settings(base: DictConfig, space: Space) -> dict[str, object]:
    """All settings that results depend on and that are not searched, by key."""
    names = [key.lstrip("+").partition("@") for key in space.searched]
    searched = [package or group.replace("/", ".") for group, _, package in names]
    sections = without_secrets(OmegaConf.to_container(base, resolve=False))
    assert isinstance(sections, dict)
    beside = {key for key in sections if is_beside_numbers(key)} - {"objective"}
    kept = {key: value for key, value in sections.items() if key not in ("hydra", *beside)}
    return {key: value for key, value in _leaves(kept) if not any(f"{key}.".startswith(f"{s}.") for s in searched)}


def _leaves(value: Mapping[Any, object], where: str = "") -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for key, item in value.items():
        name = f"{where}{key}"
        found += _leaves(item, f"{name}.") if isinstance(item, Mapping) and item else [(name, item)]
    return found


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
