"""What the YAML files of the configuration say of themselves: the comments of a choice and of its settings."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

_PACKAGE = re.compile(r"# @package (\S+)")


@dataclass(frozen=True)
class Setting:
    """A line of a file.

    Attributes:
        keys: that lead to it, the last one its own.
        value: as it is written; empty where settings follow below.
        comment: behind it on its line, without the ``#``; empty if there is none.
        line: of its key, counted from 0; None where its value goes on in the next one, other than as a list.
    """

    keys: tuple[str, ...]
    value: str
    comment: str
    line: int | None


@dataclass(frozen=True)
class ChoiceFile:
    """A YAML file of the configuration.

    Attributes:
        summary: the comment that it begins with, as one paragraph; empty if there is none.
        package: where its settings lie, if it says so (``_global_``, ``stages.prune``).
        settings: in the order of the file, without the list ``defaults``.
        defaults: the entries of that list that choose something at a place: keys ``("defaults", "/method@inner")`` with
            the value ``alps``, or ``("defaults", "@perplexity")`` with a choice of the same group, whose settings lie
            there; ``@`` alone where they lie among the file's own.
    """

    summary: str
    package: str | None
    settings: tuple[Setting, ...]
    defaults: tuple[Setting, ...]


def read_choice(path: Path) -> ChoiceFile:
    """Reads a file with its comments.

    Args:
        path: of a YAML file whose top level is a mapping.

    Raises:
        yaml.YAMLError: it is no YAML.
    """
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    head = lines[: next((index for index, line in enumerate(lines) if not line.startswith("#")), len(lines))]
    package = next((found[1] for line in head if (found := _PACKAGE.fullmatch(line.rstrip()))), None)
    summary = " ".join(line.lstrip("# ").rstrip() for line in head if not line.startswith("# @package"))
    settings = list(settings_of(text))
    return ChoiceFile(
        summary,
        package,
        tuple(setting for setting in settings if setting.keys[0] != "defaults"),
        tuple(setting for setting in settings if setting.keys[0] == "defaults" and len(setting.keys) > 1),
    )


def settings_of(text: str) -> Iterator[Setting]:
    """Yields the settings of a YAML text with the comments behind them.

    Args:
        text: whose top level is a mapping. An item of a list whose value is a mapping of one key counts as a setting of
            the list's key, which is how Hydra's ``defaults`` are written; other lists are values.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if isinstance(root, yaml.MappingNode):
        yield from _below(root, (), text.splitlines())


def _below(node: yaml.MappingNode, above: tuple[str, ...], lines: list[str]) -> Iterator[Setting]:
    for key, value in node.value:
        keys, line = (*above, str(key.value)), key.start_mark.line
        if not isinstance(value, yaml.CollectionNode) or value.flow_style:
            end = key.end_mark if value.start_mark.index == value.end_mark.index else value.end_mark
            comment = _comment(lines[end.line], end.column) if end.line < len(lines) else ""
            yield Setting(keys, _written(value, lines), comment, line if end.line == line else None)
            continue
        comment = _comment(lines[line], key.end_mark.column + 1)
        if isinstance(value, yaml.MappingNode):
            yield Setting(keys, "", comment, line)
            yield from _below(value, keys, lines)
        elif keys == ("defaults",):
            yield from _choices(value, lines)
        else:
            yield Setting(keys, _in_one_line(value), comment, line)


def _choices(value: yaml.Node, lines: list[str]) -> Iterator[Setting]:
    for item in value.value:
        if isinstance(item, yaml.MappingNode):
            yield from _below(item, ("defaults",), lines)
        elif item.value != "_self_":
            chosen, _, place = item.value.partition("@")
            yield Setting(("defaults", f"@{place}"), chosen, "", item.start_mark.line)


def _written(value: yaml.Node, lines: list[str]) -> str:
    """A value as the file has it, in one line."""
    first, last = value.start_mark, value.end_mark
    if first.line == last.line:
        return lines[first.line][first.column : last.column].strip()
    return _in_one_line(value)


def _in_one_line(value: yaml.Node) -> str:
    plain = yaml.SafeLoader("").construct_document(value)
    dumped = yaml.safe_dump(plain, default_flow_style=True, width=math.inf, sort_keys=False)
    return dumped.removesuffix("...\n").strip()


def _comment(line: str, column: int) -> str:
    rest = line[column:].strip()
    return rest.lstrip("# ") if rest.startswith("#") else ""
