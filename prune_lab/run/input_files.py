"""Which files a run reads: each part of the configuration declares its own, on its class.

``input_files = ("path",)`` says that the parameter ``path`` names a file, a folder, or a pattern of these. A mapping
adds a condition: ``{"path": "kind=local|hub"}``. Declarations are read from the sources, since importing the parts of a
run takes seconds that a run which has finished before should not cost.
"""

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

from omegaconf import MISSING

from prune_lab.errors import BadInput
from prune_lab.utils.paths import TooManyFiles, named_paths, regular_files, shown_path

DECLARATION = "input_files"
_PACKAGE = "prune_lab."

Stamp = tuple[str, int, int]
"""The path of a file, its bytes, and its time of change in nanoseconds."""


def files_of(settings: Any) -> dict[str, list[Stamp]]:
    """Returns the files that parts of a configuration read, with sizes and times of change, by what names them.

    Args:
        settings: plain settings, or some sections of them.

    Raises:
        BadInput: a setting names a folder with so many files that looking at all of them would take too long.
    """
    named = {text: key for key, text in _named(settings, "")}
    return {text: found for text, key in sorted(named.items()) if (found := _stamps(text, key))}


def named_inputs(settings: Any) -> Iterator[tuple[str, str]]:
    """Returns the keys whose values name files, each with what it names; several for a list.

    Args:
        settings: plain settings, or some sections of them.
    """
    return _named(settings, "")


@contextmanager
def bounded(text: str, key: str) -> Iterator[None]:
    """Says of which setting there are too many files.

    Args:
        text: that names them.
        key: of the setting.

    Raises:
        BadInput: there are too many.
    """
    try:
        yield
    except TooManyFiles as error:
        raise BadInput(f"{key}={shown_path(text)}: {error}") from error


def declared(target: str) -> Mapping[str, str | None]:
    """Returns the parameters of a class that name files, each with the condition under which it does.

    Args:
        target: the path of the class; one outside the package declares nothing.
    """
    module, _, name = target.rpartition(".")
    return _declared(module, name) if target.startswith(_PACKAGE) else {}


def _named(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """All texts that name files, in nested settings, each with its key."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _named(item, f"{key}[{index}]")
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _named(item, f"{key}.{name}".removeprefix("."))
        for name, condition in declared(str(value.get("_target_", ""))).items():
            other, _, wanted = (condition or "").partition("=")
            if not condition or other not in value or value[other] in wanted.split("|"):
                found = value.get(name)
                texts = found if isinstance(found, list) else [found]
                yield from ((f"{key}.{name}", text) for text in texts if _is_given(text))


def _stamps(text: str, key: str) -> list[Stamp]:
    """Every file at or below what a text names."""
    with bounded(text, key):
        return [
            (file, state.st_size, state.st_mtime_ns)
            for path in named_paths(text)
            for file, state in regular_files(path)
        ]


@cache
def _declared(module: str, name: str) -> Mapping[str, str | None]:
    """The declaration of a class, or of the first of its bases that has one."""
    tree = _tree(module)
    found = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)
    if found is None:
        return {}
    for node in found.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == DECLARATION for target in targets):
            value = ast.literal_eval(node.value)  # type: ignore[attr-defined]  # an assignment has one
            return value if isinstance(value, dict) else dict.fromkeys(value)
    for base in found.bases:
        inherited = _declared_by_base(tree, module, base)
        if inherited:
            return inherited
    return {}


def _declared_by_base(tree: ast.Module, module: str, base: ast.expr) -> Mapping[str, str | None]:
    if not isinstance(base, ast.Name):
        return {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for each in node.names:
                if (each.asname or each.name) == base.id:
                    return declared(f"{node.module}.{each.name}")
    return _declared(module, base.id)


@cache
def _tree(module: str) -> ast.Module:
    spec = importlib.util.find_spec(module)
    source = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
    return ast.parse(source)


def _is_given(text: Any) -> TypeGuard[str]:
    return isinstance(text, str) and text not in ("", MISSING)
