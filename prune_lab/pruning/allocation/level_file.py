"""Reads levels by name from YAML, JSON or CSV."""

import csv
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prune_lab.errors import BadInput

COLUMNS = ("name", "sparsity")


@dataclass(frozen=True)
class LevelFile:
    """What was read: levels by name, in the order of the file, and a hash of its bytes."""

    levels: dict[str, float]
    sha256: str


def read_levels(path: str) -> LevelFile:
    """Reads a mapping from names to levels.

    Args:
        path: of a ``.yaml``, ``.yml`` or ``.json`` file with one mapping, or of a ``.csv`` file with the columns
            ``name`` and ``sparsity``, among others.

    Raises:
        BadInput: the file cannot be read, or holds something else; the message leaves open which key gave the path.
    """
    where = f"{{at}}.path={path}"
    kind = Path(path).suffix.lower()
    if kind not in (".yaml", ".yml", ".json", ".csv"):
        raise BadInput(f"{where} is of no known kind; allowed: .yaml, .yml, .json, .csv")
    try:
        content = Path(path).read_bytes()
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise BadInput(f"{where}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{where} cannot be read: {error}") from error
    pairs = _from_csv(text, where) if kind == ".csv" else _from_mapping(text, kind, where)
    levels: dict[str, float] = {}
    for name, value in pairs:
        if name in levels:
            raise BadInput(f"{where} names {name} twice")
        levels[name] = _level(value, f"{where}: {name}")
    if not levels:
        raise BadInput(f"{where} is empty; it maps names of layers or blocks to the fraction removed")
    return LevelFile(levels, hashlib.sha256(content).hexdigest())


def _from_csv(text: str, where: str) -> list[tuple[str, Any]]:
    rows = csv.DictReader(io.StringIO(text))
    missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
    if missing:
        raise BadInput(f"{where} has no column {' and no column '.join(missing)}; it needs {' and '.join(COLUMNS)}")
    return [(str(row["name"]), row["sparsity"]) for row in rows]


def _from_mapping(text: str, kind: str, where: str) -> list[tuple[str, Any]]:
    try:
        found = json.loads(text) if kind == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise BadInput(f"{where} is no {kind[1:].upper()}: {' '.join(str(error).split())}") from error
    if found is not None and not isinstance(found, dict):
        raise BadInput(f"{where} holds no mapping; it maps names of layers or blocks to the fraction removed")
    return [(str(name), value) for name, value in (found or {}).items()]


def _level(value: Any, where: str) -> float:
    try:
        level = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        level = None
    if level is None or not 0 <= level < 1:
        raise BadInput(f"{where} has the level {value!r}; allowed: [0, 1), the fraction removed")
    return level
