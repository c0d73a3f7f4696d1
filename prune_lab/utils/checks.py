"""Checks of the values of settings; each reads fields of a component and raises `BadSetting` about them.

Booleans are no numbers, and neither are NaN, infinities or text: ``"5"`` is not 5.
"""

import sys
from collections.abc import Collection, Sequence

from prune_lab.errors import BadSetting

MOST_SEED = 2**64 - 1
"""The largest seed of torch's generators."""

_LARGEST = sys.float_info.max  # NaN is not below it, and neither is a whole number that no float can hold


def check_whole(
    owner: object, *fields: str, least: int = 1, most: int | None = None, optional: bool = False, hint: str = ""
) -> None:
    """Checks that fields hold whole numbers.

    Args:
        owner: the component.
        fields: names of its fields.
        least: the smallest number allowed.
        most: the largest one; None: any.
        optional: whether None is allowed, too.
        hint: ends the message: the unit, or what None means.

    Raises:
        BadSetting: one holds something else.
    """
    reach = f"whole numbers of at least {least}" if most is None else f"whole numbers from {least} to {most}"
    for field in fields:
        value = getattr(owner, field)
        if value is None and optional:
            continue
        if type(value) is not int or value < least or (most is not None and value > most):
            raise _not_allowed(owner, field, reach, optional, hint)


def check_seed(owner: object, field: str = "seed") -> None:
    """Checks that a field holds a seed.

    Raises:
        BadSetting: it does not.
    """
    check_whole(owner, field, least=0, most=MOST_SEED)


def check_number(
    owner: object,
    *fields: str,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    optional: bool = False,
    hint: str = "",
) -> None:
    """Checks that fields hold finite numbers in a range.

    Args:
        owner: the component.
        fields: names of its fields.
        least: the smallest number allowed.
        most: the largest one.
        above: numbers must be larger; an open end in the place of ``least``.
        below: numbers must be smaller; an open end in the place of ``most``.
        optional: whether None is allowed, too.
        hint: ends the message: the unit, or what None means.

    Raises:
        BadSetting: one holds something else.
    """
    for field in fields:
        value = getattr(owner, field)
        if value is None and optional:
            continue
        if not is_number(value, least=least, most=most, above=above, below=below):
            raise _not_allowed(owner, field, _range(least, most, above, below), optional, hint)


def is_number(
    value: object,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> bool:
    """Whether a value is a finite number in a range; see `check_number`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST <= value <= _LARGEST:
        return False
    large = (least is None or value >= least) and (above is None or value > above)
    return large and (most is None or value <= most) and (below is None or value < below)


def check_choice(
    owner: object, field: str, allowed: Collection[object], *, optional: bool = False, hint: str = ""
) -> None:
    """Checks that a field holds one of a few values.

    Raises:
        BadSetting: it holds another.
    """
    value = getattr(owner, field)
    if value is None and optional:
        return
    if isinstance(value, bool) or not any(value == each for each in allowed):
        raise _not_allowed(owner, field, ", ".join(map(str, allowed)), optional, hint)


def check_flag(owner: object, *fields: str, optional: bool = False) -> None:
    """Checks that fields hold true or false.

    Args:
        owner: the component.
        fields: names of its fields.
        optional: whether None is allowed, too.

    Raises:
        BadSetting: one holds something else, 1 or "yes" for example.
    """
    for field in fields:
        value = getattr(owner, field)
        if not isinstance(value, bool) and not (optional and value is None):
            raise _not_allowed(owner, field, "true, false", optional, "")


def check_text(owner: object, *fields: str, optional: bool = False, empty: bool = False, hint: str = "") -> None:
    """Checks that fields hold text.

    Args:
        owner: the component.
        fields: names of its fields.
        optional: whether None is allowed, too.
        empty: whether a text of no characters is allowed.
        hint: ends the message: what the text is, or what None means.

    Raises:
        BadSetting: one holds something else.
    """
    for field in fields:
        value = getattr(owner, field)
        if value is None and optional:
            continue
        if not isinstance(value, str) or not (value or empty):
            quoted = f"a text, so put it in two pairs of quotes: \"'{value}'\"" if is_number(value) else "a text"
            raise _not_allowed(owner, field, quoted, optional, hint)


def check_texts(owner: object, *fields: str, least: int = 0, hint: str = "") -> None:
    """Checks that fields hold lists of texts.

    Args:
        owner: the component.
        fields: names of its fields.
        least: the texts that a list has at least.
        hint: ends the message.

    Raises:
        BadSetting: one holds something else.
    """
    for field in fields:
        value = getattr(owner, field)
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        if not is_list or len(value) < least or not all(isinstance(each, str) and each for each in value):
            example = f"[{value}]" if isinstance(value, str) and value else "[a, b]"
            raise _not_allowed(owner, field, f"a list of texts, such as {example}", False, hint)


def _not_allowed(owner: object, field: str, allowed: str, optional: bool, hint: str) -> BadSetting:
    null, hint = ", or null" if optional else "", hint.removeprefix("null: ")
    return BadSetting(owner, field, f"is not allowed; allowed: {allowed}{null}{f' ({hint})' if hint else ''}")


def _range(least: float | None, most: float | None, above: float | None, below: float | None) -> str:
    low, high = least if above is None else above, most if below is None else below
    if low is None and high is None:
        return "numbers"
    if high is None:
        return f"numbers of at least {least:g}" if above is None else f"numbers above {above:g}"
    if low is None:
        return f"numbers of at most {most:g}" if below is None else f"numbers below {below:g}"
    return f"numbers in {'[' if above is None else '('}{low:g}, {high:g}{']' if below is None else ')'}"
