"""Imports point one way, so that a file can be read without what stands above it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import prune_lab
from prune_lab.source import _BESIDE_RUNS

PACKAGE = Path(prune_lab.__file__).parent
LAYERS = (  # a module imports from layers above its own line only, and from its own package
    {"errors", "files", "cache", "progress", "precision", "svg", "source", "compose", "locks", "digests"},
    {"masks", "store"},
    {"solvers"},
    {"data"},
    {"models"},
    {"target", "device", "statistics", "rehearsal"},
    {"calibration"},
    {"resume"},
    {"methods"},
    {"training"},
    {"allocation"},
    {"evaluation"},
    {"tracking"},
    {"run"},
    {"stages"},
    {"settings", "environment"},
    {"summary", "search", "reuse"},
    {"sweep", "sharing", "launch"},
    {"runner"},
    {"__main__"},
    {"report"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def sources() -> dict[Path, str]:
    """Every file of the package with the module or package right below ``prune_lab`` that it belongs to."""
    paths = (path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py")
    return {path: path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in paths}


def imports(source: str) -> Iterator[str]:
    """The parts of prune_lab that a source imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            modules = [f"{node.module}.{name.name}" for name in node.names]
        elif isinstance(node, ast.Import):
            modules = [name.name for name in node.names]
        else:
            continue
        for module in modules:
            package, _, rest = module.partition(".")
            if package == "prune_lab" and rest:
                yield rest.partition(".")[0]


def violations(files: dict[str, tuple[str, str]]) -> list[str]:
    return [
        f"{name} imports {imported}"
        for name, (part, source) in files.items()
        for imported in imports(source)
        if imported != part and LEVEL.get(imported, len(LAYERS)) >= LEVEL.get(part, -1)
    ]


def test_every_part_has_a_layer():
    assert set(sources().values()) == set(LEVEL)


def test_imports_point_one_way():
    files = {
        str(path.relative_to(PACKAGE)): (part, path.read_text(encoding="utf-8")) for path, part in sources().items()
    }
    assert violations(files) == []


def test_a_wrong_import_would_be_found():
    wrong = "def late():\n    from prune_lab.methods.wanda import Wanda\n"
    assert violations({"masks.py": ("masks", wrong)}) == ["masks.py imports methods"]
    assert violations({"a.py": ("target", "import prune_lab.device")}) == ["a.py imports device"]
    assert violations({"a.py": ("methods", "from prune_lab import target")}) == []


def test_what_is_no_part_of_a_run_is_imported_by_no_part_of_one():
    """Their sources do not decide whether a run counts as done."""
    for path, part in sources().items():
        if part not in (*_BESIDE_RUNS, "__main__"):
            assert not set(imports(path.read_text(encoding="utf-8"))) & set(_BESIDE_RUNS), path
