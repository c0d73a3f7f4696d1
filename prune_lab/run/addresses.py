"""Makes the parts of a configuration, and knows at which key each of them stands."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from hydra.utils import get_object

from prune_lab.errors import BadInput, Reported
from prune_lab.run.annotations import hints_of, is_part, mistake_of

_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")

Path = tuple[str | int, ...]
"""Where a part stands: keys of mappings and indices of lists."""

Part = TypeVar("Part")


class Addresses:
    """The parts made from a configuration, with the key of each.

    Args:
        plain: the settings, resolved, in plain containers; their targets have been vetted.
    """

    def __init__(self, plain: Mapping[str, Any]) -> None:
        self._plain = plain
        self._made: dict[int, tuple[object, Path]] = {}  # by id; holds the part, so that no other gets its id
        self._places: dict[Path, Path] = {}  # of fields that are sections of their own

    def make(self, key: str, kind: type[Part], given: Mapping[str, tuple[Any, str]] | None = None) -> Part:
        """Makes the part at a key, with all parts below it.

        Args:
            key: ``model`` or ``stages.prune``.
            kind: what the part must be.
            given: by parameter, what was made before and stands elsewhere, and its key.

        Raises:
            BadInput: it cannot be made, or is of another kind than asked for.
        """
        path: Path = tuple(key.split("."))
        value: Any = self._plain
        for step in path:
            value = value[step]
        self._places |= {(*path, name): (place,) for name, (_, place) in (given or {}).items() if place}
        made = self._make(value, path, {name: made for name, (made, _) in (given or {}).items()})
        if mistake := mistake_of(self._key(path), made, kind):
            raise BadInput(mistake)
        return made  # type: ignore[no-any-return]

    def section(self, name: str) -> Any:
        """Makes a section, which may also be a plain value, or nothing."""
        return self._make(self._plain[name], (name,))

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Fills the keys of parts into the messages of errors that leave them open."""
        try:
            yield
        except Reported as error:
            if error.owner is not None:
                path = self._path_of(error.owner) or self._path_of_original(error.owner)
                if path is not None:
                    self._locate(error, path)
            error.args = (str(error),)
            raise

    def _make(self, value: Any, path: Path, others: Mapping[str, Any] | None = None) -> Any:
        """Parts, from the inside out; plain containers where there is no target."""
        if isinstance(value, list):
            return [self._make(item, (*path, index)) for index, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        given = {name: self._make(item, (*path, name)) for name, item in value.items()}
        if not _is_node(value):
            return given
        target = get_object(value["_target_"])
        given = {name: item for name, item in given.items() if not name.startswith("_")}
        given |= others or {}
        mistake = self._mistake(target, given, path)
        try:
            made = target(**given)
        except Reported as error:  # it knows the range, which the annotation does not
            below = None if error.owner is None else self._path_of(error.owner)
            self._locate(error, below or path)  # the part itself is not among those made
            raise
        except Exception as error:  # what a check has missed
            raise BadInput(mistake or f"{self._key(path)} cannot be made with these values: {error}") from error
        if mistake:
            raise BadInput(mistake)
        self._made[id(made)] = made, path
        return made

    def _mistake(self, target: Any, given: Mapping[str, Any], path: Path) -> str | None:
        """Compares values with the annotations of the parameters that they are given to.

        Returns:
            What is wrong with the first value of a wrong type.

        Raises:
            BadInput: a part is of another kind; such a one is not even tried.
        """
        hints, rest = hints_of(target)
        found = None
        for name, item in given.items():
            hint = hints.get(name, rest)
            mistake = mistake_of(self._key((*path, name)), item, hint)
            if mistake and is_part(hint):
                raise BadInput(mistake)
            found = found or mistake
        return found

    def _path_of(self, owner: object) -> Path | None:
        if id(owner) in self._made:
            return self._made[id(owner)][1]
        for made, path in self._made.values():  # a part may have replaced those below it
            if (below := _path_to(owner, made)) is not None:
                return (*path, *below)
        return None

    def _path_of_original(self, copy: object) -> Path | None:
        """That of the part that a copy was made of, where only one can be: `dataclasses.replace` gives copies."""
        paths = {self._key(path): path for made, path in self._made.values() if type(made) is type(copy)}
        return next(iter(paths.values())) if len(paths) == 1 else None

    def _locate(self, error: Reported, path: Path) -> None:
        error.locate(lambda rest: self._key((*path, *_steps(rest))))

    def _key(self, path: Path) -> str:
        """The key that was typed, or could have been."""
        for end in range(len(path), 0, -1):
            if path[:end] in self._places:
                path = (*self._places[path[:end]], *path[end:])
                break
        return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def _path_to(owner: object, made: object) -> Path | None:
    """Where a part stands in another one, or in lists and mappings of it."""
    if made is owner:
        return ()
    items: Iterable[tuple[str | int, object]] = ()
    if isinstance(made, Mapping):
        items = made.items()
    elif isinstance(made, list):
        items = enumerate(made)
    elif is_dataclass(made):
        items = ((field.name, getattr(made, field.name, None)) for field in fields(made))
    found = ((step, _path_to(owner, item)) for step, item in items)
    return next(((step, *below) for step, below in found if below is not None), None)


def _steps(rest: str) -> Path:
    return tuple(int(index) if index else name for name, index in _STEP.findall(rest))


def _is_node(value: Any) -> bool:
    """Whether a part is made of a value."""
    return isinstance(value, dict) and "_target_" in value
