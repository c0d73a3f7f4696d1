"""Which choice of a Hydra group a section of a run's settings came from, read off the files of the group."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import yaml

from prune_lab.run.config import conf_folder

Leaves = dict[tuple[str, ...], Any]


def choice_of(group: str, section: Any) -> str | None:
    """The choice of ``conf/GROUP`` that differs least from a section; ``None`` where none makes the same object."""
    if not isinstance(section, dict):
        return None
    return _choice_of(group, json.dumps(section, sort_keys=True))


def leaves_of(value: Any, path: tuple[str, ...] = ()) -> Leaves:
    """The values of nested settings by their paths; a list is one value."""
    if not isinstance(value, dict) or (not value and path):
        return {path: value}
    found: Leaves = {}
    for key, item in value.items():
        found |= leaves_of(item, (*path, str(key)))
    return found


@cache
def _choice_of(group: str, section: str) -> str | None:
    given = json.loads(section)
    leaves, target = leaves_of(given), given.get("_target_")
    near = [(_distance(leaves, choice), name) for name, choice in _choices(group) if _target(choice) == target]
    return min(near, key=lambda each: (each[0], each[1] != defaults().get(group), each[1]))[1] if near else None


@cache
def defaults() -> dict[str, str]:
    """The choice of each group that a run has unless it asks for another."""
    listed = yaml.safe_load((conf_folder() / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    return {group: name for item in listed if isinstance(item, dict) for group, name in item.items()}


@cache
def choices_of(group: str) -> frozenset[str]:
    """The names of a group's choices."""
    return frozenset(name for name, _ in _choices(group))


@cache
def _choices(group: str) -> list[tuple[str, Leaves]]:
    names = sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))
    return [(name, leaves_of(_content(group, name))) for name in names]


def _target(leaves: Leaves) -> Any:
    return leaves.get(("_target_",))


def _distance(given: Leaves, choice: Leaves) -> int:
    """How many values differ or are only on one side; what the choice leaves open fits anything."""
    fixed = {path: value for path, value in choice.items() if not _is_open(value)}
    differing = sum(given.get(path, path) != value for path, value in fixed.items())
    return differing + len(set(given) - set(choice))


def _is_open(value: Any) -> bool:
    return isinstance(value, str) and (value == "???" or "${" in value)


def _content(group: str, name: str) -> dict[str, Any]:
    """A file of a group with those of its defaults list, which is the part of Hydra's composition that groups use."""
    own = yaml.safe_load((conf_folder() / group / f"{name}.yaml").read_text(encoding="utf-8")) or {}
    content: dict[str, Any] = {}
    for key, part in _parts(group, own.pop("defaults", [])):
        content |= {key: part} if key else part
    return content | own


def _parts(group: str, defaults: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for item in defaults:
        place, name = next(iter(item.items())) if isinstance(item, dict) else ("", item)
        if name == "_self_" or place.startswith("override "):
            continue
        if not place:  # NAME or NAME@KEY of the same group
            name, _, key = name.partition("@")
            yield key, _content(group, name)
        else:  # /GROUP@KEY: NAME
            other, _, key = place.lstrip("/").partition("@")
            yield key, _content(other, name)
