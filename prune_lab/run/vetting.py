"""Checks what a configuration asks to be made, before anything is made of it: every mistake is found, and told at once.

Hydra refuses unknown keys on the command line, but not in an experiment file; and it stops at the first mistake when it
instantiates. A configuration may come from a stranger, so that only a class that belongs where it stands is made, and a
setting that would run code of others has to be trusted (`prune_lab.run.trust`).
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.utils import get_object
from omegaconf import MISSING

from prune_lab.errors import BadInput, shown
from prune_lab.run.config import RunConfig
from prune_lab.run.kinds import SECTIONS, Kinds, fits, kinds_below, names_of
from prune_lab.run.renamed import new_target
from prune_lab.run.state import Stage
from prune_lab.run.trust import OURS, how_to_trust, is_trusted, is_trusted_target


def vet(config: RunConfig) -> None:
    """Checks every target, its keys, and that no value is missing; imports what the targets name.

    Raises:
        BadInput: anything is wrong; the message lists all of it.
    """
    problems = [
        problem
        for section, value in config.plain.items()
        for problem in _without_target(section, value) or _problems(value, section, SECTIONS.get(section, ()))
    ]
    if problems:
        raise BadInput("\n".join(dict.fromkeys(problems)))


def _without_target(section: str, value: Any) -> list[str]:
    """The mistakes in a section that is to be made, or in a stage, where it does not say of which class."""
    parts = {f"stages.{name}": own for name, own in value.items()} if section == "stages" else {section: value}
    return [
        f"{where}._target_ is missing; give {where}._target_=CLASS, of the kind {names_of(SECTIONS[section])}"
        for where, part in parts.items()
        if section in SECTIONS and isinstance(part, dict) and "_target_" not in part
    ]


def _problems(value: Any, where: str, kinds: Kinds | None) -> Iterator[str]:
    """The mistakes in a value.

    Args:
        value: plain settings.
        where: its key.
        kinds: of the parts that may stand there; None where that cannot be known, below a part that is refused.
    """
    if value == MISSING:
        yield f"{where} is missing; give {where}=VALUE"
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _problems(item, f"{where}[{index}]", kinds)
    elif isinstance(value, dict) and "_target_" not in value:
        for key, item in value.items():
            yield from _problems(item, f"{where}.{key}", kinds)
    elif isinstance(value, dict):
        made = _class_of(value, where, kinds)
        below, others = ({}, None) if isinstance(made, str) else kinds_below(made)
        for key, item in value.items():
            yield from _problems(item, f"{where}.{key}", below.get(key, others))
        yield from [made] if isinstance(made, str) else _key_problems(made, value, where)


def _class_of(node: Mapping[str, Any], where: str, kinds: Kinds | None) -> type | str:
    """The class of a part, or why it is not made."""
    target, key = node["_target_"], f"{where}._target_"
    if not isinstance(target, str):
        return f"{key}={shown(target)} is not allowed; allowed: the name of a class"
    if not is_trusted_target(target) and not is_trusted(key):
        return (
            f"{key}={target} is not trusted; only targets under {OURS} are made from a configuration; "
            f"{how_to_trust(key, f'{target.partition(chr(46))[0]}.*')}"
        )
    try:
        made = get_object(target)
    except Exception as error:  # an import may fail in any way
        moved = new_target(target)
        return f"{key}={target} cannot be imported: {error}" + (f"; it is {moved} now" if moved else "")
    home = f"{getattr(made, '__module__', '')}."
    if target.startswith(OURS) and not home.startswith(OURS):  # something that a module of ours only imports
        return f"{key}={target} is not trusted; it is {home}{getattr(made, '__qualname__', target)}"
    if not inspect.isclass(made) or (kinds is not None and not fits(made, kinds)):
        allowed = f"a class of the kind {names_of(kinds)}" if kinds else "a plain value, and no part"
        return f"{key}={target} is not allowed; allowed: {allowed}"
    return made


def _key_problems(made: Any, node: Mapping[str, Any], where: str) -> Iterator[str]:
    """Keys that are unknown, missing, or ask for trust."""
    parameters = dict(inspect.signature(made).parameters)
    for key, does in getattr(made, "needs_trust", _nothing)(node):
        path = f"{where}.{key}"
        if not is_trusted(path):
            yield f"{path}={shown(_at(node, key))} {does}, and stands in a file: {how_to_trust(path)}"
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in made.needs if Stage in inspect.getmro(made) else ():  # sections that the runner hands to a stage
        parameters.pop(name, None)
    for key in sorted({"_partial_", "_recursive_", "_args_"} & set(node)):
        yield f"{where}.{key} is unknown; leave it out: a part is made of all of its keys, by name"
    for key in node:
        if not key.startswith("_") and key not in parameters:
            yield f"{where}.{key} is unknown; allowed: {', '.join(parameters) or 'none'}"
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in node:
            yield f"{where}.{name} is missing; give {where}.{name}=VALUE"


def _nothing(node: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from ()


def _at(node: Any, key: str) -> Any:
    for name in key.split("."):
        node = node[name]
    return node
