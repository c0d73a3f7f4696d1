"""Which code this is."""

import hashlib
from functools import cache
from pathlib import Path

from prune_lab.utils.plugins import source_files

_BESIDE_RUNS = (
    "api",
    "clean",
    "export",
    "report",
    "sweep",
)  # packages that start runs or read them, and take no part in them


@cache
def source_digest() -> str:
    """A SHA-256 of all sources that take part in a run, those of packages that bring parts among them."""
    package, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).parts[0] not in _BESIDE_RUNS:
            digest.update(path.read_bytes())
    for path in source_files():
        digest.update(path.read_bytes())
    return digest.hexdigest()
