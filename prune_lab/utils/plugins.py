"""Parts that other installed packages bring: classes, or settings, that they name as entry points.

Reading the names imports nothing. To install a package that names a part is to trust that part, as with every plugin.
"""

import inspect
import os
from collections.abc import Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prune_lab.errors import BadInput, shown

GROUPS: Mapping[str, str] = {
    "method": "prune_lab.methods",
    "allocation": "prune_lab.allocations",
    "model": "prune_lab.models",
    "data": "prune_lab.data",
    "evaluate": "prune_lab.metrics",
}
"""By group of the configuration, the group of entry points whose names are further choices of it."""

TRUST = "PRUNE_LAB_TRUST"
"""The environment variable that names what is trusted, ``PACKAGE.*`` among it."""

_PLAIN = (type(None), bool, int, float, str)


@cache
def installed() -> dict[tuple[str, str], EntryPoint]:
    """Returns by group of the configuration and choice the entry point that brings it."""
    found = entry_points()  # once: it looks at every distribution
    return {(group, entry.name): entry for group, of_group in GROUPS.items() for entry in found.select(group=of_group)}


def is_installed_target(target: str) -> bool:
    """Returns whether an installed package names a class, by its full name, as a part."""
    return any(_target(entry) == target for entry in installed().values())


def versions() -> dict[str, str]:
    """Returns the versions of the distributions that bring parts, by name."""
    return {entry.dist.name: entry.dist.version for entry in installed().values() if entry.dist is not None}


def source_files() -> list[Path]:
    """Returns the Python files of the packages that bring parts, or are trusted to, in order."""
    trusted = {name.strip() for name in os.environ.get(TRUST, "").split(",") if name.strip().endswith(".*")}
    found: list[Path] = []
    for name in sorted({each.partition(".")[0] for each in (*trusted, *(e.module for e in installed().values()))}):
        spec = find_spec(name) if name.isidentifier() else None
        if spec is None:
            continue
        if spec.submodule_search_locations is None:
            found += [Path(spec.origin)] if spec.origin else []
        else:
            found += [path for folder in spec.submodule_search_locations for path in sorted(Path(folder).rglob("*.py"))]
    return found


def settings_of(entry: EntryPoint) -> dict[str, Any]:
    """Returns the settings that an entry point stands for, as a YAML file of the group would have them.

    Args:
        entry: of a class, whose parameters are the keys and whose defaults are their values; or of a mapping, which
            are the settings themselves.

    Raises:
        BadInput: it cannot be imported, or is neither.
    """
    where = f"{entry.group}: {entry.name} = {entry.value}" + (f" (of {entry.dist.name})" if entry.dist else "")
    try:
        found = entry.load()
    except Exception as error:  # an import may fail in any way
        raise BadInput(
            f"the entry point {where} cannot be imported: {type(error).__name__}: {error}; mend that package, or "
            "uninstall it"
        ) from error
    if isinstance(found, Mapping):
        return dict(found)
    if not inspect.isclass(found):
        raise BadInput(f"the entry point {where} is {shown(found)}; it has to name a class, or a mapping of settings")
    made = {field.name: field.default_factory for field in fields(found)} if is_dataclass(found) else {}
    settings: dict[str, Any] = {"_target_": _target(entry)}
    for name, parameter in inspect.signature(found).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        factory = made.get(name, NO_DEFAULT)
        value = parameter.default if factory is NO_DEFAULT else factory()
        if value is parameter.empty:
            settings[name] = "???"
        elif _is_plain(value):
            settings[name] = list(value) if isinstance(value, tuple) else value
    return settings


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    return all(map(_is_plain, value)) if isinstance(value, list | tuple) else isinstance(value, _PLAIN)


def _target(entry: EntryPoint) -> str:
    return entry.value.replace(":", ".").partition("[")[0].strip()
