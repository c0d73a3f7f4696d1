"""The rooms of ``docs/architecture.md``: imports point one way, so that a room can be read without those above it."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import prune_lab
from prune_lab.cache.source import _BESIDE_RUNS

PACKAGE = Path(prune_lab.__file__).parent
ROOMS = (  # a room imports from itself and from those before it
    "errors", "utils", "cache", "models", "data", "training", "pruning", "evaluation", "run", "sweep", "clean",
    "report", "export", "api", "__main__",
)  # fmt: skip
SOURCES = {  # by the name of the module
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path.read_text(encoding="utf-8")
    for path in PACKAGE.rglob("*.py")
    if path != PACKAGE / "__init__.py"
}


def imports(source: str) -> Iterator[str]:
    """The modules of prune_lab that a source imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        assert not isinstance(node, ast.ImportFrom) or node.level == 0, "a relative import"
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name.name}" for name in node.names]
        else:
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
        for package, _, rest in (name.partition(".") for name in names):
            if package == "prune_lab" and rest:
                yield rest if rest in SOURCES or f"{rest}.__init__" in SOURCES else rest.rpartition(".")[0]


def room_of(module: str) -> str:
    return module.partition(".")[0]


def violations(sources: dict[str, str]) -> list[str]:
    """Imports of rooms that come later."""
    arrows = [(module, imported) for module, source in sources.items() for imported in imports(source) if imported]
    return [f"{a} imports {b}" for a, b in arrows if ROOMS.index(room_of(a)) < ROOMS.index(room_of(b))]


def test_every_module_is_in_a_room():
    assert {room_of(module) for module in SOURCES} == set(ROOMS)


def test_rooms_import_from_those_before_them():
    assert violations(SOURCES) == []
    late = {"pruning.masks": "def late():\n    from prune_lab.run.state import Run\n"}
    assert violations(late) == ["pruning.masks imports run.state"]


def test_no_modules_import_each_other():
    TopologicalSorter({module: set(imports(source)) - {module} for module, source in SOURCES.items()}).prepare()
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


def test_what_is_no_part_of_a_run_is_imported_by_no_part_of_one():
    """Their sources do not decide whether a run counts as done."""
    for module, source in SOURCES.items():
        if room_of(module) not in (*_BESIDE_RUNS, "__main__"):
            assert not set(map(room_of, imports(source))) & set(_BESIDE_RUNS), module


def test_every_package_says_what_lives_in_it():
    for folder in {path.parent for path in PACKAGE.rglob("*.py")}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))), folder


def test_files_and_functions_are_short_enough_to_be_read():
    for module, source in SOURCES.items():
        assert source.count("\n") <= 300, module
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{module}: {node.name}"
