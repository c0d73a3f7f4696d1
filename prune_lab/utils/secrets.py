"""Keeps secrets out of what is written: files of a run, messages, logs, the report.

A secret is known by its key (``api_key``, ``token``, ``password``), by its place in a URL (``scheme://user:PASSWORD@``),
or because it was taken from an environment variable. Values that have been recognised once are remembered, so that
they are kept out of messages and logs, too.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

HIDDEN = "***"
_NAMES = "api_?key|token|secret|pass(?:word|wd|phrase)?|credentials?"
_KEY = re.compile(rf"(?:^|[_-])(?:{_NAMES})$", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?P<user>\b[\w+.-]+://[^\s:/@'\"]*):(?P<password>[^\s/'\"]+)@")
_INNER = re.compile(
    rf"(?P<key>(?<![\w-])(?:[\w-]*[_-])?(?:{_NAMES})['\"]?\s*[:=]\s*)(?P<value>'[^']*'|\"[^\"]*\"|[^\s,{{}}\[\]&]+)",
    re.IGNORECASE,
)
_LEAST = 4  # characters of a value that is looked for in other texts: a shorter one is found everywhere

_known: set[str] = set()


def is_secret(key: object) -> bool:
    """Returns whether what stands under a key is a secret: ``token``, ``wandb_api_key``; not ``max_tokens``."""
    return _KEY.search(str(key)) is not None


def remember(value: object) -> None:
    """Keeps a value out of all texts from now on, in this process."""
    if isinstance(value, str) and len(value) >= _LEAST and value != HIDDEN:
        _known.add(value)


@contextmanager
def forgetting() -> Iterator[None]:
    """Remembers what is recognised inside only there: a record of others decides about its own texts."""
    before = set(_known)
    try:
        yield
    finally:
        _known.intersection_update(before)


def without_secrets(value: object) -> object:
    """Returns a copy of nested settings in which secrets read ``***``; those found are remembered."""
    if isinstance(value, Mapping):
        return {key: _hidden(item) if is_secret(key) else without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return redacted(value) if isinstance(value, str) else value


def without_known_secrets(value: Any) -> Any:
    """Returns a copy of nested values whose texts do not hold secrets recognised before; keys say nothing here."""
    if isinstance(value, Mapping):
        return {key: without_known_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_known_secrets(item) for item in value]
    return redacted(value) if isinstance(value, str) else value


def redacted(text: str) -> str:
    """Returns a text with ``***`` for passwords in URLs, and for every value that was recognised as a secret before."""
    if "://" in text:
        for found in _URL_PASSWORD.finditer(text):
            remember(found["password"])
        text = _URL_PASSWORD.sub(rf"\g<user>:{HIDDEN}@", text)
    for value in sorted(_known, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text


def redacted_override(override: str) -> str:
    """Returns an override of the command line with ``***`` for secrets: of its own key, inside ``{...}``, in a URL."""
    key, sign, value = override.partition("=")
    if sign and value and is_secret(re.split(r"[.@]", key.lstrip("+~"))[-1]):
        _remember_written(value)
        return f"{key}{sign}{HIDDEN}"
    if sign and any(bracket in value for bracket in "{?"):
        value = _INNER.sub(_inner, value)
    return redacted(f"{key}{sign}{value}")


def hide_in_logs() -> None:
    """Keeps secrets out of every line that is logged from now on in this process, whoever handles it."""
    if getattr(logging.getLogRecordFactory(), "__module__", "") == __name__:
        return
    ordinary = logging.getLogRecordFactory()

    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = ordinary(*args, **kwargs)
        try:
            told = record.getMessage()
        except (TypeError, ValueError):  # the handler will say that it does not fit
            return record
        if (safe := redacted(told)) != told:
            record.msg, record.args = safe, None
        return record

    logging.setLogRecordFactory(make)


def _inner(found: "re.Match[str]") -> str:
    """A pair inside an override: ``{token: abc}``, ``?password=abc``."""
    _remember_written(found["value"])
    return f"{found['key']}{HIDDEN}"


def _remember_written(value: str) -> None:
    """Remembers a value as the command line has it, but for an interpolation, which tells nothing."""
    plain = value.strip("'\"")
    if not plain.startswith("${"):
        remember(plain)


def _hidden(value: object) -> object:
    """What stands in the place of a secret; nothing, a flag, a small number and a reference to elsewhere are none."""
    if value is None or isinstance(value, bool) or (isinstance(value, str) and value.startswith("${")):
        return value
    if isinstance(value, Mapping):
        return {key: _hidden(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(item) for item in value]
    if not isinstance(value, str) and len(str(value)) < _LEAST:
        return value
    remember(str(value))
    return HIDDEN
