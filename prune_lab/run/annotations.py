"""Whether a value of the configuration fits the annotation of the parameter that it is given to.

A component checks the ranges of its fields, which only it knows. Their types are its annotations, and they are checked
here for all components alike: ``true`` is no number, 1.5 no whole number, 1 neither true nor false, NaN nothing at all.
"""

import inspect
import typing
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal

from hydra.utils import get_object

from prune_lab.errors import shown
from prune_lab.evaluation.metric import Described
from prune_lab.utils.checks import MOST_SEED, is_number

_OURS = "prune_lab."


def hints_of(target: Any) -> tuple[dict[str, Any], Any]:
    """Returns the annotations of a target's parameters by name, and that of further keywords (`Any` if it has none)."""
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except NameError:  # a name that only a type checker imports
        return {}, Any
    hints.pop("return", None)
    for parameter in inspect.signature(target).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            return hints, hints.pop(parameter.name, Any)
    return hints, Any


def is_part(hint: Any) -> bool:
    """Whether an annotation allows parts only, beside null."""
    return all(each is NoneType or _is_ours(each) for each in _options(hint))


def mistake_of(key: str, value: Any, hint: Any) -> str | None:
    """Says what is wrong with a value that does not fit; `None` if it does.

    Args:
        key: as it was typed.
        value: see `fits`.
        hint: see `fits`.
    """
    if fits(value, hint):
        return None
    given, found = f"{key}={shown(value)}", _class_of(value)
    if our_classes(found):
        given = f"{key}._target_={found.__module__}.{found.__qualname__}"
    return f"{given} is not allowed; allowed: {_allowed_by(hint, value)}"


def fits(value: Any, hint: Any) -> bool:
    """Whether a value fits an annotation.

    Args:
        value: a plain value, a part, or the settings of a part.
        hint: a class, ``Literal``, ``Sequence`` or ``Mapping`` with their items, ``Any``, or a union of these; whatever
            else it is allows everything.
    """
    return any(_fits(value, each) for each in _options(hint))


def is_of_kind(found: Any, kind: type) -> bool:
    """Whether a class may stand where a part of some kind is expected.

    One that shares the base of the kind may: `GUM` in the place of a `BlockMethod`, as both are methods; the component
    says better what it can work with.

    Args:
        found: the class.
        kind: that is expected; a class with all members of a protocol is of its kind.
    """
    members = [name for name, member in vars(kind).items() if not name.startswith("_") and callable(member)]
    is_protocol = getattr(kind, "_is_protocol", False) and all(callable(getattr(found, name, None)) for name in members)
    return is_protocol or (inspect.isclass(found) and _base(kind) in inspect.getmro(found))


def _base(kind: type) -> type:
    """The first class of prune_lab that a kind derives from; `Described` is shared by kinds that are not alike."""
    return [kind, *(each for each in our_classes(kind) if each is not Described)][-1]


def _options(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (UnionType, typing.Union)
    return typing.get_args(hint) if is_union else (NoneType if hint is None else hint,)


def _fits(value: Any, hint: Any) -> bool:
    origin, items = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in items)
    if hint is Any or not inspect.isclass(origin):
        return _holds_numbers(value)
    if _is_ours(origin):
        return is_of_kind(_class_of(value), origin)
    if origin is float:
        return is_number(value)
    if origin is int:
        return type(value) is int and abs(value) <= MOST_SEED
    if origin is str:
        return isinstance(value, str) and _is_unicode(value)
    if origin in (bool, NoneType):
        return isinstance(value, origin)
    if issubclass(origin, Sequence):
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        return is_list and all(fits(each, items[0] if items else Any) for each in value)
    if issubclass(origin, Mapping):
        of_keys, of_values = items or (Any, Any)
        return isinstance(value, Mapping) and all(fits(k, of_keys) and fits(v, of_values) for k, v in value.items())
    return True


def _holds_numbers(value: Any) -> bool:
    """Whether all numbers in a value of any kind are finite."""
    if isinstance(value, Mapping):
        return all(map(_holds_numbers, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_holds_numbers, value))
    return not isinstance(value, float) or is_number(value)


def _is_unicode(text: str) -> bool:
    """Whether a text can be written to a file; bytes of the command line that are no UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _class_of(value: Any) -> Any:
    """The class of a part, which need not be made yet."""
    is_part = isinstance(value, Mapping) and "_target_" in value
    return get_object(value["_target_"]) if is_part else type(value)


def our_classes(kind: Any) -> list[type]:
    """A class and its bases, those of prune_lab."""
    return [each for each in inspect.getmro(kind) if _is_ours(each)] if inspect.isclass(kind) else []


def _is_ours(kind: Any) -> bool:
    return inspect.isclass(kind) and kind.__module__.startswith(_OURS)


def _allowed_by(hint: Any, value: Any) -> str:
    """What an annotation allows, in the words of `prune_lab.utils.checks`; the value shows how to write it."""
    options = [each for each in _options(hint) if each is not NoneType]
    kinds = " or ".join(each.__name__ for each in options if _is_ours(each))
    texts = [f"a section whose _target_ is of the kind {kinds}"] if kinds else []
    texts += [_allowed(each, value) for each in options if not _is_ours(each)]
    return ", or ".join([*texts, "null"] if NoneType in _options(hint) else texts)


def _allowed(hint: Any, value: Any) -> str:
    origin, items = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is Literal:
        return ", ".join(map(str, items))
    if origin is str:
        return _text(value)
    plain = {int: "whole numbers", float: "numbers", bool: "true, false"}
    if origin in plain or hint is Any or not inspect.isclass(origin):
        return plain.get(origin, "finite numbers")
    inside = "values" if not items or items[-1] is Any else _allowed_by(items[-1], []).replace("a text", "texts")
    if issubclass(origin, Mapping):
        return f"a mapping of names to {inside}, such as {{NAME: VALUE}}"
    return f"a list of {inside}" + (f", such as [{value}]" if isinstance(value, str) and value else "")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return "a text in UTF-8"
    scalar = value is None or isinstance(value, bool | int | float)
    return f"a text, so put it in two pairs of quotes: \"'{shown(value)}'\"" if scalar else "a text"
