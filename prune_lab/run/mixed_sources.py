"""Sources of ``data=mix`` that are named by their shares: ``data.shares={c4: 0.7}`` also makes the choice ``c4``."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Override

from prune_lab.errors import BadInput

_PLACE = "data.sources"
_SHARE = re.compile(r"data\.shares\.")
_SAMPLES = re.compile(rf"{_PLACE}\.\w+\.samples")


def sources_named(overrides: Sequence[Override], is_choice: Callable[[str], bool]) -> list[str]:
    """Returns the overrides that give a mix the sources that are named by a choice of the group ``data``.

    Args:
        overrides: all of them.
        is_choice: whether the group ``data`` has a choice of a name.

    Raises:
        BadInput: a source is given a number of samples, which its share decides.
    """
    for each in overrides:
        if _SAMPLES.fullmatch(each.key_or_group):
            raise BadInput(f"{each.input_line} is not allowed: its share decides it; data.samples is of all")
    chosen = {each.key_or_group: _values(each) for each in overrides if each.package is None}
    if "mix" not in chosen.get("data", ["mix"] if "experiment" in chosen else []):
        return []
    placed = {each.package for each in overrides if each.key_or_group == "data" and each.package is not None}
    named = [name for name in dict.fromkeys(_named(chosen)) if f"{_PLACE}.{name}" not in placed and is_choice(name)]
    return [f"+data@{_PLACE}.{name}={name}" for name in named]


def names_sources(override: Override) -> bool:
    """Whether an override may name sources of a mix, and so decides what is composed."""
    return (
        override.key_or_group in ("data.shares", "data.evaluate_on") or _SHARE.match(override.key_or_group) is not None
    )


def _named(chosen: Mapping[str, list[Any]]) -> Iterator[str]:
    """The sources of which shares are given, together or each by itself, and those to evaluate on."""
    for key, values in chosen.items():
        if key == "data.shares":
            yield from (name for value in values if isinstance(value, dict) for name in value)
        elif key.startswith("data.shares."):
            yield key.removeprefix("data.shares.")
        elif key == "data.evaluate_on":
            yield from (value for value in values if isinstance(value, str))


def _values(override: Override) -> list[Any]:
    """The value of an override, or all that a sweep gives it."""
    value = override.value()
    return list(value.list) if isinstance(value, ChoiceSweep) else [value]
