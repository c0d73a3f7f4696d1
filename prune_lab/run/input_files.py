"""Which files a run reads: each part of the configuration declares its own, on its class.

``input_files = ("path",)`` says that the parameter ``path`` names a file, a folder, or a pattern of these. A mapping
adds a condition: ``{"path": "kind=local"}``. Declarations are read from the sources, since importing the parts of a run
takes seconds that a run which has finished before should not cost.
"""

import ast
import glob
import importlib.util
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

DECLARATION = "input_files"
_PACKAGE = "prune_lab."

Stamp = tuple[str, int, int]
"""The path of a file, its bytes, and its time of change in nanoseconds."""


def files_of(settings: Any) -> dict[str, list[Stamp]]:
    """Returns the files that parts of a configuration read, with sizes and times of change, by what names them.

    Args:
        settings: plain settings, or some sections of them.
    """
    named = sorted({text for text in _named(settings) if text and "\0" not in text})
    return {text: found for text in named if (found := _stamps(text))}


def declared(target: str) -> Mapping[str, str | None]:
    """Returns the parameters of a class that name files, each with the condition under which it does.

    Args:
        target: the path of the class; one outside the package declares nothing.
    """
    module, _, name = target.rpartition(".")
    return _declared(module, name) if target.startswith(_PACKAGE) else {}


def _named(value: Any) -> Iterator[str]:
    """All texts that name files, in nested settings."""
    if isinstance(value, list):
        for item in value:
            yield from _named(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _named(item)
        for key, condition in declared(str(value.get("_target_", ""))).items():
            other, _, wanted = (condition or "").partition("=")
            if not condition or value.get(other, wanted) == wanted:
                found = value.get(key)
                yield from (text for text in (found if isinstance(found, list) else [found]) if isinstance(text, str))


def _stamps(text: str) -> list[Stamp]:
    """Every file below what a text names."""
    paths = [Path(found) for found in sorted(glob.glob(text, recursive=True))]
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]


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
