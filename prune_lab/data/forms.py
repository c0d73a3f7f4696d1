"""How a row of a task becomes a prompt and its completions: templates, or a marker in one text."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from prune_lab.errors import BadSetting
from prune_lab.utils.checks import check_text


class DoesNotFit(Exception):
    """A row lacks what a form needs."""


class Form(Protocol):
    """Finds the prompt and the completions in rows of one kind."""

    def read(self, values: Mapping[str, object]) -> tuple[str, list[str]]:
        """The prompt and its completions; raises `DoesNotFit`."""
        ...

    def needs(self) -> str:
        """What a row must have, for a message."""
        ...


@dataclass
class Template:
    """Fills templates as ``str.format`` does: ``{question}``, or ``{table[id]}`` for what lies deeper.

    A list is joined by commas; but a completion of one field that holds a list is as many completions. Where the text
    goes on with a word, the blank before it belongs to the template of the completion: tokenizers know ``" word"``.

    Attributes:
        prompt: of the prompt.
        completion: of each completion.
    """

    prompt: str
    completion: str
    _fields: list[str] = field(init=False, repr=False)  # of the completion

    def __post_init__(self) -> None:
        _check_template(self, "prompt")
        self._fields = _check_template(self, "completion")

    def read(self, values: Mapping[str, object]) -> tuple[str, list[str]]:
        """The prompt and its completions; raises `DoesNotFit`."""
        prompt = _fill(self.prompt, values)
        if len(self._fields) == 1 and isinstance(many := _value(self._fields[0], values), list):
            before, after = _around_field(self.completion)
            return prompt, [before + _text(one) + after for one in many]
        return prompt, [_fill(self.completion, values)]

    def needs(self) -> str:
        """The fields."""
        return ", ".join(dict.fromkeys(_check_template(self, "prompt") + self._fields))


@dataclass
class Marked:
    r"""Cuts one text behind the last marker in it.

    Attributes:
        text: the key or column of the text.
        marker: what ends the prompt, such as ``"\nA:"``; the blank after it is left to the completion.
    """

    text: str
    marker: str

    def __post_init__(self) -> None:
        check_text(self, "text", hint="the key or column of the text")
        check_text(self, "marker", hint="what ends the prompt")

    def read(self, values: Mapping[str, object]) -> tuple[str, list[str]]:
        """The prompt, which ends with the marker, and the one completion; raises `DoesNotFit`."""
        text = values.get(self.text)
        if not isinstance(text, str) or self.marker not in text:
            raise DoesNotFit
        prompt, marker, completion = text.rpartition(self.marker)
        return prompt + marker, [completion]

    def needs(self) -> str:
        """The field and its marker."""
        return f"{self.text} with {self.marker!r} in it"


class _Filler(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        return _text(value)

    def convert_field(self, value: Any, conversion: str | None) -> Any:
        return value


def _fill(template: str, values: Mapping[str, object]) -> str:
    try:
        return _Filler().vformat(template, (), values)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise DoesNotFit from error


def _value(name: str, values: Mapping[str, object]) -> object:
    try:
        return string.Formatter().get_field(name, (), values)[0]
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise DoesNotFit from error


def _text(value: object) -> str:
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, Sequence):
        return ", ".join(_text(item) for item in value)
    raise DoesNotFit  # null, or an object


def _around_field(template: str) -> tuple[str, str]:
    """The text before and after the one field of a template."""
    first, *others = string.Formatter().parse(template)
    return first[0], "".join(literal for literal, *_ in others)


def _check_template(form: Template, key: str) -> list[str]:
    """The fields of a template, with what lies deeper; raises BadSetting if it is none."""
    check_text(form, key, hint="a template")
    try:
        parsed = [each for each in string.Formatter().parse(getattr(form, key)) if each[1] is not None]
    except ValueError as error:
        raise BadSetting(form, key, f"is not a template ({error})") from error
    names = [str(name) for _, name, _, _ in parsed]
    if any(spec or conversion for _, _, spec, conversion in parsed):
        raise BadSetting(form, key, "is not allowed; allowed: fields without a format, such as {text}, not {text:d}")
    if not names or any(not name or name[0].isdigit() for name in names):
        raise BadSetting(form, key, "is not allowed; allowed: a template that names at least one field, such as {text}")
    return names
