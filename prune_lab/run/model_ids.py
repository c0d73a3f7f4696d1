"""Models that are named directly: ``model=org/name``, ``model=DIR``, ``model=FILE.gguf`` are two settings in one."""

import os
import re
from collections.abc import Callable, Sequence

from hydra.core.override_parser.types import Override, OverrideType

from prune_lab.models.folder import GGUF
from prune_lab.utils.paths import local_path

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_IN_HOME = re.compile(r"model=(~[^'\",\[\](){}]*)")
_QUOTES = "'\""
_PATH = ("/", "./", "../", "~")


def spelled_out(override: Override, is_choice: Callable[[str], bool]) -> list[str]:
    """Returns the overrides that one stands for: itself, or the choice and the path of a model that is named directly.

    A name with a slash is a choice if there is one of that name, else a folder that is there, else a repository of the
    hub. The text of the path is taken as it was typed, with its quotes.

    Args:
        override: any.
        is_choice: whether the group ``model`` has a choice of a name.
    """
    line = str(override.input_line)
    if override.key_or_group != "model" or override.package is not None or override.type != OverrideType.CHANGE:
        return [line]
    value = None if override.is_sweep_override() else override.value()
    kind = _kind(value, is_choice) if isinstance(value, str) else None
    return [f"model={kind}", f"model.path={line.partition('=')[2]}"] if kind else [line]


def readable(line: str) -> str:
    """Puts a model in a home folder into quotes, without which Hydra's grammar has no place for ``~``."""
    found = _IN_HOME.fullmatch(line)
    return f"model='{found[1]}'" if found else line


def as_typed(message: str, overrides: Sequence[str]) -> str:
    """Gives a message about the path of a model that was named directly the key that was typed.

    Args:
        message: of an error.
        overrides: what was typed.
    """
    if any(line.lstrip("+").startswith("model.path=") for line in overrides):
        return message
    for typed in (line.removeprefix("model=") for line in overrides if line.startswith("model=")):
        for name in (each.strip(_QUOTES) for each in (typed, *typed.split(","))):
            for shown in (f"model.path={name}", f"model.path={local_path(name)}"):
                if message.startswith((f"{shown}:", f"{shown} ")):
                    return f"model={name}{message.removeprefix(shown)}"
    return message


def _kind(name: str, is_choice: Callable[[str], bool]) -> str | None:
    """The choice that takes the name as its path; ``None`` where it is the name of a choice, or may be meant as one."""
    if name.endswith(GGUF):
        return "gguf"
    if name.startswith(_PATH):
        return "local"
    if "/" not in name or is_choice(name):
        return None
    return "hub" if _REPOSITORY.fullmatch(name) and not os.path.isdir(local_path(name)) else "local"
