"""Checks what a composed configuration asks of Hydra itself, before Hydra makes anything of it.

Hydra makes callbacks, sweepers, launchers and log handlers from its own section, sets environment variables and runs
lines of shell on a cluster. Files may choose among what is there; all else is typed, or named as trusted.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prune_lab.errors import BadInput, shown
from prune_lab.run.choices import choices_of
from prune_lab.run.hydra_settings import mistakes_of
from prune_lab.run.renamed import new_name
from prune_lab.run.trust import OURS, how_to_trust, is_trusted, is_trusted_target

SUMMARY = "prune_lab.sweep.summary.SweepSummary"
TRIAL = "PRUNE_LAB_TRIAL"
"""The environment variable with a trial's number, which Hydra sets for the job of a search (``hydra.job.env_set``)."""

_SPECIAL = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")
_RUN_SOMETHING = {  # of launchers: lines of shell, interpreters, options of programs, and clusters that jobs come from
    "setup", "python", "srun_args", "additional_parameters", "address", "init", "remote", "ray", "env_setup", "run_env",
    "storage_proxy",
}  # fmt: skip
_LOG_CLASSES = (
    "logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "logging.Formatter",
    "colorlog.ColoredFormatter",
)  # fmt: skip
_LOG_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
_DEEPEST = 20  # levels of settings; an interpolation may lead in a circle
_LOG_FILE = "${hydra.runtime.output_dir}/${hydra.job.name}.log"


def vet_hydra(cfg: DictConfig) -> None:
    """Checks the section ``hydra`` of a composed configuration.

    Args:
        cfg: with Hydra's own settings, interpolations and all.

    Raises:
        BadInput: a file asks for more than it may, or a value cannot be; the message lists all of it.
    """
    written: Any = OmegaConf.to_container(cfg.hydra, resolve=False)  # an interpolation is a text
    problems = [*_callbacks(written), *_plugins(cfg, written), *_logging(written), *_job(written)]
    problems += mistakes_of(cfg, written)
    if problems:
        raise BadInput("\n".join(dict.fromkeys(problems)))


def vet_search_path(paths: Any) -> None:
    """Checks ``hydra.searchpath`` of a file: to look into a package is to import it.

    Raises:
        BadInput: it names a package that is neither Hydra's nor prune_lab, and that was not typed.
    """
    for path in paths if isinstance(paths, list | tuple) else []:
        scheme, _, package = str(path).partition("://")
        known = f"{package.replace('/', '.')}.".startswith((OURS, "hydra."))
        if scheme == "pkg" and not known and not is_trusted("hydra.searchpath"):
            raise BadInput(_refusal("hydra.searchpath", path, "imports a package"))


def _callbacks(written: Mapping[str, Any]) -> Iterator[str]:
    found = written["callbacks"] or {}
    if not isinstance(found, Mapping):
        yield _refusal("hydra.callbacks", found, "makes objects")
        return
    for name, node in found.items():
        key = f"hydra.callbacks.{name}._target_"
        target = str(node.get("_target_") if isinstance(node, Mapping) else node)
        of_package = is_trusted_target(target) and not target.startswith(OURS)
        if node not in (None, {"_target_": SUMMARY}) and not of_package and not is_trusted(key):
            yield _refusal(key, target, "makes an object")


def _plugins(cfg: DictConfig, written: Mapping[str, Any]) -> Iterator[str]:
    """Sweeper and launcher: a plugin that is installed, with plain settings, none of which runs something."""
    known = Plugins.instance().class_name_to_class
    for name, kind in (("sweeper", Sweeper), ("launcher", Launcher)):
        key, node = f"hydra.{name}", written[name]
        allowed = f"allowed: hydra/{name}=NAME, one of {', '.join(['basic', *choices_of(f'hydra/{name}')])}"
        if not isinstance(node, Mapping):
            given = f"there is no {key}" if node == "???" else f"{key}={shown(node)} is not allowed"
            yield f"{given}; {allowed}"
            continue
        target = node.get("_target_")
        made = known.get(str(target), object)
        if not issubclass(made, kind):  # Hydra makes no others, also where they are typed
            yield f"{key}._target_={target} is not allowed; {allowed}, or another {name} that is installed"
        else:
            yield from _unknown(key, node, made)
        for place, value in _settings(cfg.hydra[name], key):
            path = ".".join(place)
            if is_trusted(path):
                continue
            if place[-1] in _SPECIAL and place != (key, "_target_"):
                yield _refusal(path, value, "makes an object")
            elif name == "launcher" and place[1].partition("[")[0] in _RUN_SOMETHING and value is not None:
                yield _refusal(path, value, "decides what runs, or where jobs come from")
    storage = (written["sweeper"] or {}).get("storage") if isinstance(written["sweeper"], Mapping) else None
    if isinstance(storage, str) and "://" in storage and not is_trusted("hydra.sweeper.storage"):
        yield _refusal("hydra.sweeper.storage", "URL", "connects to a database")


def _unknown(key: str, node: Mapping[str, Any], made: Any) -> Iterator[str]:
    """Settings that a sweeper or launcher does not take."""
    parameters = inspect.signature(made).parameters.values()
    if hasattr(made, "takes"):
        takes = made.takes()
    elif any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    else:
        takes = [parameter.name for parameter in parameters]
    for name in node:
        if not str(name).startswith("_") and name not in takes:
            allowed = ", ".join(f"{key}.{each}" for each in takes) or f"none below {key}"
            new = new_name(f"{key}.{name}")
            yield f"{key}.{name} is called {new} now" if new else f"{key}.{name} is unknown; allowed: {allowed}"


def _settings(node: Any, *place: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All settings below a key by their places, with those that interpolations bring."""
    if len(place) > _DEEPEST:
        yield (*place, "_target_"), "..."
        return
    for name in range(len(node)) if OmegaConf.is_list(node) else list(node):
        own = (*place[:-1], f"{place[-1]}[{name}]") if OmegaConf.is_list(node) else (*place, str(name))
        try:
            value = None if OmegaConf.is_missing(node, name) else node[name]
        except OmegaConfBaseException as error:  # of which nobody can tell what it is later
            yield (*own, "_target_"), str(error).partition("\n")[0]
            continue
        if OmegaConf.is_config(value):
            yield from _settings(value, *own)
        else:
            yield own, value


def _logging(written: Mapping[str, Any]) -> Iterator[str]:
    """Handlers and formatters of the standard library, which write to the terminal and to the file of the run."""
    for section in ("job_logging", "hydra_logging"):
        for path, value in _leaves(written[section], f"hydra.{section}"):
            name = path.rpartition(".")[2]
            if is_trusted(path) or not isinstance(value, str):
                continue
            if name in ("class", "()"):
                harmless = value in _LOG_CLASSES
            elif name == "filename":
                harmless = value == _LOG_FILE
            else:
                harmless = value in _LOG_STREAMS or not ("://" in value or "${" in value)
            if not harmless:
                yield _refusal(path, value, "makes an object, or writes to a file of its choice")


def _job(written: Mapping[str, Any]) -> Iterator[str]:
    """Environment variables."""
    job = written["job"]
    copied = job["env_copy"] or []
    for name in [copied] if isinstance(copied, str) else copied:
        if not is_trusted("hydra.job.env_copy"):
            yield _refusal("hydra.job.env_copy", name, "writes down environment variables")
    for name in [job["env_set"]] if isinstance(job["env_set"], str) else job["env_set"] or ():
        key = f"hydra.job.env_set.{name}"
        if name not in (TRIAL, *copied) and not is_trusted(key):
            yield _refusal(key, "...", "changes the environment")


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{key}[{index}]")
    else:
        yield key, value


def _refusal(key: str, value: Any, does: str) -> str:
    return f"{key}={shown(value)} stands in a file and {does}: {how_to_trust(key)}"
