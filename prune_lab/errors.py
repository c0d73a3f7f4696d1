"""The errors a user is meant to read: their message is the whole report, without a traceback.

A component knows its fields, but not where it stands in the configuration. So a message may say ``{at}`` for the place
of its owner: ``{at}.damping``. Whoever knows the place fills it in (`prune_lab.run.addresses`); until then the name of
the owner's class stands there.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

_LONG_WORD = re.compile(r"\S{300,}")  # paths are shorter, most of them
_LONG_NUMBER = re.compile(r"Exceeds the limit \(\d+ digits\) for integer string conversion[^)]*?(\(\)[\w ]*|$)")
_KEY = re.compile(r"\{at\}((?:\.\w+|\[\d+\])*)")


class Reported(Exception):
    """What the errors of prune_lab share: a message in which the place of a component may still be open.

    Args:
        message: says what was given, what is allowed, and what to do; ``{at}.FIELD`` for a key of the owner.
        owner: the component that the message is about; None: its caller may know, see `owned_by`.
    """

    def __init__(self, message: str = "", owner: object | None = None) -> None:
        super().__init__(message)
        self.owner = owner

    @property
    def is_open(self) -> bool:
        """Whether the message still has a key without its place."""
        return _KEY.search(self.args[0]) is not None

    def locate(self, key_of: Callable[[str], str]) -> None:
        """Fills in the place, for good.

        Args:
            key_of: gives the full key for what follows the place: ``.damping``, or nothing for the owner itself.
        """
        self.args = (_KEY.sub(lambda found: key_of(found[1]), self.args[0]),)
        self.owner = None

    def __str__(self) -> str:
        name = "" if self.owner is None else type(self.owner).__name__
        return _KEY.sub(lambda found: f"{name}{found[1]}".removeprefix("."), self.args[0])

    def __reduce__(self) -> tuple[object, ...]:
        """Leaves the owner behind: it may hold a model, and errors travel between the processes of a sweep."""
        return _again, (type(self), self.args[0] if self.owner is None else str(self))


def _again(kind: type[Reported], message: str) -> Reported:
    error = kind.__new__(kind, message)
    Reported.__init__(error, message)
    return error


class BadInput(Reported, ValueError):
    """Something the user gave cannot be used; the command prints the message and exits with status 2.

    The message says what was given, where, what is allowed, and what to do.
    """


class BadSetting(BadInput):
    """A component cannot work with the value of one of its fields.

    Args:
        owner: the component.
        field: the name of the field; its value is read from the owner.
        reason: what follows ``KEY=VALUE`` in the message: what is allowed, and what to do.
    """

    def __init__(self, owner: object, field: str, reason: str) -> None:
        comma = "" if reason[:1] in ":,;" else " "
        super().__init__(f"{{at}}.{field}={shown(getattr(owner, field))}{comma}{reason}", owner)
        self.field = field


class RunFailed(Reported, RuntimeError):
    """A run that started could not go on; the command prints the message and exits with status 1."""


class NotPositiveDefinite(RunFailed):
    """A damped Hessian has no Cholesky factor; more calibration tokens or more damping help."""


class TrialStopped(Exception):
    """A trial of a search is not worth going on with; no failure, and no result either.

    The message says at which step, with which value.
    """


@contextmanager
def owned_by(owner: object, place: str = "", *, renamed: Mapping[str, str] | None = None) -> Iterator[None]:
    """Makes a component the owner of the errors of a helper that it has made, or of a function that it calls.

    Args:
        owner: whose keys the messages are about.
        place: of the helper below the owner: ``.stop_early``; none if the helper's fields are the owner's.
        renamed: names of the helper's fields, and what the owner calls them.
    """
    try:
        yield
    except Reported as error:
        if error.is_open:

            def key_of(rest: str) -> str:
                name = rest.removeprefix(".")
                return f"{{at}}{place}.{renamed[name]}" if renamed and name in renamed else f"{{at}}{place}{rest}"

            error.locate(key_of)
            error.owner = owner
        raise


@contextmanager
def owning(owner: object) -> Iterator[None]:
    """Makes a component the owner of errors that leave a key open and have no owner.

    Args:
        owner: whose keys the messages are about; errors of parts below it keep their own.
    """
    try:
        yield
    except Reported as error:
        if error.is_open and error.owner is None:
            error.owner = owner
        raise


@contextmanager
def located(place: str) -> Iterator[None]:
    """Fills in where the component stands that raises an error: ``hydra.sweeper``; empty: at the top."""
    try:
        yield
    except Reported as error:
        error.locate(lambda rest: f"{place}{rest}".removeprefix("."))
        raise


def shown(value: object) -> str:
    """A value as the command line would have it, but with quotes around text; made parts by the name of their class."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if hasattr(value, "__dict__"):
        return type(value).__name__
    try:
        text = repr(value)
    except ValueError:  # Python does not write out whole numbers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 120 else f"{text[:117]}..."


def shortened(text: str) -> str:
    """A message without what nobody reads: the middle of absurdly long words, and Python's words about long numbers.

    >>> shortened("device=" + 1000 * "9" + " is unknown")
    'device=999999999999999999999999999999999999999999999999999...(1007 characters) is unknown'
    """
    text = _LONG_NUMBER.sub("a number of thousands of digits stands there", text)
    return _LONG_WORD.sub(lambda word: f"{word[0][:58]}...({len(word[0])} characters)", text)
