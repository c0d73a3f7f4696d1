"""Checks what a configuration asks to be made, before anything is made of it: every mistake is found, and told at once.

Hydra refuses unknown keys on the command line, but not in an experiment file; and it stops at the first mistake when it
instantiates.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.utils import get_object

from prune_lab.errors import BadInput
from prune_lab.run.config import RunConfig
from prune_lab.run.renamed import new_target
from prune_lab.run.state import Stage

_TRUSTED = "prune_lab."


def vet(config: RunConfig) -> None:
    """Checks every target, its keys, and that no value is missing; imports what the targets name.

    Raises:
        BadInput: anything is wrong; the message lists all of it.
    """
    problems = [problem for section, value in config.plain.items() for problem in _problems(value, section)]
    if problems:
        raise BadInput("\n".join(dict.fromkeys(problems)))


def _problems(value: Any, where: str) -> Iterator[str]:
    if value == "???":
        yield f"{where} is missing; give {where}=VALUE"
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _problems(item, f"{where}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _problems(item, f"{where}.{key}")
        if "_target_" in value:
            yield from _target_problems(value, where)


def _target_problems(node: Mapping[str, Any], where: str) -> Iterator[str]:
    target = str(node["_target_"])
    if not target.startswith(_TRUSTED):
        yield f"{where}._target_={target} is not trusted; only targets under {_TRUSTED} are made from a configuration"
        return
    try:
        made = get_object(target)
        parameters = dict(inspect.signature(made).parameters)
    except Exception as error:  # an import may fail in any way
        moved = new_target(target)
        yield f"{where}._target_={target} cannot be imported: {error}" + (f"; it is {moved} now" if moved else "")
        return
    if not f"{made.__module__}.".startswith(_TRUSTED):  # something that a module of ours only imports
        yield f"{where}._target_={target} is not trusted; it is {made.__module__}.{made.__qualname__}"
        return
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
