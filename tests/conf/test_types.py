"""Every setting of every YAML, by the annotation of its parameter: values of other types are refused by its key."""

import copy
import inspect
import math
import re
import typing
from collections.abc import Callable, Iterator
from types import NoneType
from typing import Any, Literal

import pytest
from hydra.utils import get_object
from omegaconf import DictConfig

from prune_lab.errors import Reported, shown
from prune_lab.run.addresses import Addresses
from prune_lab.utils.plain import plain_dict
from tests.conf.conftest import CHOICES, GIVEN

pytestmark = pytest.mark.usefixtures("given_files")

EMPTY = ("data.forms",)  # a part says of null that there is nothing
NUMBERS = [math.nan, math.inf, -math.inf]
LONG = "x" * 5000
WRONG: dict[Any, list[Any]] = {
    int: ["nosuch", "5", LONG, True, 1.5, [1], {"a": 1}, *NUMBERS],
    float: ["nosuch", "0.5", LONG, True, [0.5], {"a": 1}, *NUMBERS, 10**400],
    bool: ["nosuch", "true", LONG, 1, 0, 0.5, [True], {"a": 1}, math.nan],
    str: [5, True, math.nan, ["a"], {"a": "b"}],
    Literal: ["nosuch", LONG, True, 5, math.nan, ["a"], {"a": 1}],
    list: [5, True, math.nan, [[math.nan]], {"a": 1}],
    dict: [5, True, math.nan, "nosuch", ["a"]],
}


def nodes(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], dict[str, Any]]]:
    """The parts of a section, each with its place."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield path, value
        for key, item in value.items():
            yield from nodes(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from nodes(item, (*path, index))


def parameters(node: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Those of a part that a user may set, with their annotations; also what the YAML leaves out."""
    made = get_object(node["_target_"])
    hints = typing.get_type_hints(made.__init__ if inspect.isclass(made) else made)
    for name, parameter in inspect.signature(made).parameters.items():
        if parameter.kind is not parameter.VAR_KEYWORD:
            yield name, hints[name]


def wrong_for(hint: Any) -> list[Any]:
    options = typing.get_args(hint) if NoneType in typing.get_args(hint) else (hint,)
    others = [each for each in options if each is not NoneType]
    origins = [typing.get_origin(each) or each for each in others]
    known = {list: list, dict: dict}
    kinds = []
    for origin in origins:
        if origin in WRONG:
            kinds.append(origin)
        elif inspect.isclass(origin) and origin.__module__ == "collections.abc":
            kinds.append(known[dict if origin.__name__ == "Mapping" else list])
    if len(kinds) < len(others) or len(kinds) > 1:
        return [5, True, math.nan, "nosuch"] if not kinds else []  # parts
    return WRONG[kinds[0]] + ([] if NoneType in options else [None])


def key_of(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def message_of(plain: dict[str, Any], path: tuple[str | int, ...], value: Any) -> str:
    section = str(path[0])
    changed = {section: copy.deepcopy(plain[section])}
    node: Any = changed
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    addresses = Addresses(changed)
    try:
        with addresses.naming():
            addresses.section(section)
    except Reported as error:
        return str(error)
    return ""


@pytest.mark.parametrize("choice", CHOICES)
def test_values_of_other_types_are_refused(composed: Callable[..., DictConfig], choice: str):
    plain = plain_dict(composed("tracker=jsonl", choice, *GIVEN.get(choice, [])), resolve=True)
    section, wrong = choice.partition("=")[0], []
    for path, node in nodes(plain[section], (section,)):
        for name, hint in parameters(node):
            key = key_of((*path, name))
            for value in wrong_for(hint):
                said = message_of(plain, (*path, name), value)
                of_python = re.search(r"cannot be made|argument|\bobject\b|NoneType", said)
                named = said.startswith(f"{key}={shown(value)}"[:40]) or (key in EMPTY and said.startswith(key))
                if not named or of_python or len(said) > 700:
                    wrong.append(f"{key}={shown(value)}: {said or 'accepted'}")
    assert not wrong


def test_most_annotations_have_values_that_are_wrong(composed: Callable[..., DictConfig]):
    plain = plain_dict(composed("tracker=wandb", "evaluate=all", "finetune=lora"), resolve=True)
    hints = [
        hint
        for section in plain
        if section != "stages"
        for _, node in nodes(plain[section], (section,))
        for _, hint in parameters(node)
    ]
    assert len(hints) > 60 and all(wrong_for(hint) for hint in hints)
