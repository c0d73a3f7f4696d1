"""One run as the report sees it, read from its folder; nothing in a record is trusted to be what it should."""

import csv
import json
import math
import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from prune_lab.evaluation.metric import MetricInfo
from prune_lab.report.page.asked import Asked, read_asked
from prune_lab.run import artifacts

ATTRIBUTES = ("model", "data", "method", "pattern", "level", "allocation", "finetune", "seed", "status", "written")
FILES = (artifacts.RECORD, artifacts.LAYERS, artifacts.ROUNDS)
"""What a run is read from."""
_MEASURES = ("sparsity", "relative_output_error", "block_relative_output_error")
_ROUND = ("round", "sparsity", "perplexity_pruned", "perplexity_tuned", "loss")


class Unreadable(ValueError):
    """A record that is no record; the message says why."""


@dataclass(frozen=True)
class Layers:
    """The rows of ``layers.csv``: names of weights, and each measure of all of them (NaN where it is not known)."""

    names: tuple[str, ...]
    measures: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class ReportRun:
    """A run.

    Attributes:
        folder: relative to the folder that was asked for.
        attributes: a value, or ``None``, for each of `ATTRIBUTES`.
        metrics: by ``stage/metric``.
        metric_info: the descriptions of those metrics that the record describes.
        message: why it failed or was stopped.
        command: that repeats it.
        protocol: what the numbers rest on.
        held_out: losses of held-out samples, as steps and values.
        rounds: a row for each round of pruning and training in turns.
        layers: of the last pruning.
        identity: that runs have in common where one was taken from the other.
    """

    folder: str
    attributes: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    metric_info: dict[str, MetricInfo] = field(default_factory=dict)
    message: str = ""
    command: str | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    held_out: tuple[tuple[float, float], ...] = ()
    rounds: tuple[tuple[float, ...], ...] = ()
    layers: Layers | None = None
    identity: str | None = None

    @property
    def status(self) -> str:
        """``finished``, ``failed`` or ``stopped``."""
        return str(self.attributes["status"])


def read_run(folder: Path, name: str) -> ReportRun:
    """Reads a run folder.

    Args:
        folder: that holds ``record.json``.
        name: what the report calls it.

    Raises:
        Unreadable: the record is damaged.
        OSError: it is gone.
    """
    path = folder / artifacts.RECORD
    record = _parsed(path)
    status = record.get("status")
    if not isinstance(status, str):
        raise Unreadable("it has no status")
    config, metrics, protocol = (_mapping(record, key) for key in ("config", "metrics", "protocol"))
    try:
        asked = read_asked(record, folder)
        attributes = _attributes(config, asked)
    except (TypeError, ValueError, AttributeError, KeyError, RecursionError) as error:
        raise Unreadable(f"its config is not that of a run: {error}") from error
    written = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).isoformat(timespec="seconds")
    return ReportRun(
        folder=name,
        attributes=attributes | {"status": status, "written": written},
        metrics={key: float(value) for key, value in metrics.items() if "/" in key and _is_number(value)},
        metric_info=_metric_info(record),
        message=str(record.get("error") or record.get("reason") or ""),
        command=asked.command,
        protocol=protocol,
        held_out=_held_out(protocol),
        rounds=_rounds(folder / artifacts.ROUNDS),
        layers=_layers(folder / artifacts.LAYERS),
        identity=str(record["identity"]) if record.get("identity") else None,
    )


def block_and_kind(name: str) -> tuple[int, str] | None:
    """Of ``model.layers.3.mlp.up_proj``: 3 and ``mlp.up_proj``."""
    found = re.search(r"(?:^|\.)(\d+)\.(.+)$", name)
    return (int(found[1]), found[2]) if found else None


def _parsed(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"it is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise Unreadable(f"it holds a {type(record).__name__}, not an object")
    return record


def _mapping(record: dict[str, Any], key: str) -> dict[str, Any]:
    found = record.get(key) or {}
    if not isinstance(found, dict):
        raise Unreadable(f"its {key} is not an object")
    return found


def _metric_info(record: dict[str, Any]) -> dict[str, MetricInfo]:
    found = {name: MetricInfo.from_json(value) for name, value in _mapping(record, "metric_info").items()}
    return {name: info for name, info in found.items() if info is not None}


def _attributes(config: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """What a run is told by; of one that failed before it had settings, what was typed."""
    typed = asked.typed
    model, sparsity = config.get("model") or {}, config.get("sparsity") or {}
    path = str(model.get("path") or "").rstrip("/").rpartition("/")[2]
    named = {key: _text(asked.choice(key, config.get(key))) for key in ("data", "method", "allocation", "finetune")}
    if config and not {"finetune", "iterate"} & set(config.get("stages") or ()):
        named["finetune"] = "none"  # the settings of a training that did not take place
    return {
        "model": _text(model.get("name") or path or typed.get("model")),
        "data": named["data"],
        "method": named["method"],
        "pattern": _text(sparsity.get("pattern") or typed.get("sparsity")),
        "level": _number(sparsity.get("level", typed.get("sparsity.level"))),
        "allocation": named["allocation"],
        "finetune": named["finetune"],
        "seed": _whole(config.get("seed", typed.get("seed"))),
    }


def _text(value: Any) -> str | None:
    return str(value) if value not in (None, "") else None


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number.is_integer() and abs(number) < 2**63 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and _number(value) is not None


def _held_out(protocol: dict[str, Any]) -> tuple[tuple[float, float], ...]:
    for stage in ("finetune", "prune"):  # methods that train note theirs under prune
        found = protocol.get(stage)
        losses = found.get("held_out") if isinstance(found, dict) else None
        if isinstance(losses, dict) and losses:
            pairs = [(_number(step), _number(loss)) for step, loss in losses.items()]
            return tuple(sorted((step, loss) for step, loss in pairs if step is not None and loss is not None))
    return ()


def _rounds(path: Path) -> tuple[tuple[float, ...], ...]:
    rows = [tuple(_or_nan(row.get(column)) for column in _ROUND) for row in _csv(path)]
    return tuple(row for row in rows if not math.isnan(row[0]))


def _layers(path: Path) -> Layers | None:
    rows = [row for row in _csv(path) if row.get("name")]
    measures = {key: tuple(_or_nan(row.get(key)) for row in rows) for key in _MEASURES}
    return Layers(tuple(row["name"] for row in rows), measures) if rows else None


def _csv(path: Path) -> list[dict[str, str]]:
    """The rows of a file beside the record; none where it is missing or damaged, as the record does without it."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error):
        return []


def _or_nan(value: Any) -> float:
    number = _number(value)
    return math.nan if number is None else number
