"""Reads levels by name from YAML, JSON or CSV."""

import csv
import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prune_lab.errors import BadInput, shown
from prune_lab.utils.paths import local_path, shown_path, why_missing

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
    where = f"{{at}}.path={shown_path(path)}"
    kind = Path(path).suffix.lower()
    if kind not in (".yaml", ".yml", ".json", ".csv"):
        raise BadInput(f"{where} is of no known kind; allowed: .yaml, .yml, .json, .csv")
    file = local_path(path)
    if not os.path.isfile(file):  # a pipe would keep us waiting
        raise BadInput(f"{where}: {'that is no file' if os.path.exists(file) else why_missing(path)}")
    try:
        content = file.read_bytes()
        text = content.decode("utf-8-sig")
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
    try:
        missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
        pairs = [] if missing else [(str(row["name"]), row["sparsity"]) for row in rows]
    except csv.Error as error:
        raise BadInput(f"{where} is no CSV: {error}") from error
    if missing:
        raise BadInput(f"{where} has no column {' and no column '.join(missing)}; it needs {' and '.join(COLUMNS)}")
    return pairs


def _from_mapping(text: str, kind: str, where: str) -> list[tuple[str, Any]]:
    try:
        found = json.loads(text) if kind == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise BadInput(f"{where} is no {kind[1:].upper()}: {' '.join(str(error).split())}") from error
    if found is not None and not isinstance(found, dict):
        raise BadInput(f"{where} holds no mapping; it maps names of layers or blocks to the fraction removed")
    return [(str(name), value) for name, value in (found or {}).items()]


def _level(value: Any, where: str) -> float:
    try:
        level = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        level = None
    if level is None or not 0 <= level < 1:
        raise BadInput(f"{where} has the level {shown(value)}; allowed: [0, 1), the fraction removed")
    return level
