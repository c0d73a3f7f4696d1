"""The command that repeats a run: what was typed, or else what differs from the defaults."""

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prune_lab.report.page.choices import choice_of, defaults
from prune_lab.run.config import conf_folder
from prune_lab.run.settings import not_in_key
from prune_lab.run.tracking.tracker import without_secrets

_GROUPS = ("model", "data", "sparsity", "method", "allocation", "schedule", "finetune", "evaluate")
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_PLAIN = re.compile(r"[A-Za-z_./@:+-][\w./@:+-]*")
_WORDS = ("null", "true", "false", "yes", "no", "on", "off", "nan", "inf")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # thousands of small files are read


def overrides_of(folder: Path) -> list[str] | None:
    """What was typed when the run was started; ``None`` where it was not kept, or cannot be read."""
    try:
        found = yaml.load((folder / ".hydra" / "overrides.yaml").read_text(encoding="utf-8"), Loader=_LOADER)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return found if isinstance(found, list) and all(isinstance(each, str) for each in found) else None


def command_of(overrides: Sequence[str] | None, config: dict[str, Any]) -> str | None:
    """A line for a shell; ``None`` where nothing is known of the run.

    Args:
        overrides: what was typed, if that was kept.
        config: the settings of the run, resolved; empty for a run that failed before it had any.
    """
    if overrides is None and not config:
        return None
    found = _differences(config) if overrides is None else overrides
    return shlex.join(["prune-lab", *map(_without_secret, found)])


def _differences(config: dict[str, Any]) -> list[str]:
    """Choices of groups, then single values, that make these settings of the defaults."""
    asked = {key: value for key, value in config.items() if not not_in_key(key)}
    choices = {group: choice_of(group, config.get(group)) for group in _GROUPS}
    named = [f"{group}={name}" for group, name in choices.items() if name and name != defaults().get(group)]
    try:
        return [*named, *_values(asked, _composed(tuple(named)), config)]
    except (HydraException, OmegaConfBaseException):
        return named  # of another version, whose choices do not go together any more


@cache
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        plain: dict[str, Any] = OmegaConf.to_container(compose("config", list(overrides)))  # type: ignore[assignment]
    return plain


def _values(value: Any, base: Any, config: dict[str, Any], path: str = "") -> Iterator[str]:
    """What has to be set for ``base`` to become ``value``; a reference in it stands for what ``config`` has there."""
    if isinstance(base, str) and (reference := _REFERENCE.fullmatch(base)):
        base = _found(config, reference[1])
    if isinstance(value, dict) and isinstance(base, dict):
        for key, item in value.items():
            where = f"{path}.{key}".lstrip(".")
            if key in base:
                yield from _values(item, base[key], config, where)
            else:
                yield f"++{where}={_written(item)}"
    elif value != base and not (isinstance(base, str) and "${" in base):
        yield f"{path}={_written(value)}"


def _found(config: Any, path: str) -> Any:
    for key in path.split("."):
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _without_secret(override: str) -> str:
    key, sign, value = override.partition("=")
    last = key.rpartition(".")[2]
    return f"{key}{sign}{without_secrets({last: value})[last]}"  # type: ignore[index]


def _written(value: Any) -> str:
    """A value as Hydra's command line reads it."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{_written(key)}:{_written(item)}" for key, item in value.items()) + "}"
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
