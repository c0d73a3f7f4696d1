"""One run as the report sees it, read from its folder; nothing in a record is trusted to be what it should."""

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from prune_lab.evaluation.metric import MetricInfo
from prune_lab.models.folder import model_name
from prune_lab.report.evaluated import evaluation_text
from prune_lab.report.page.asked import Asked, read_asked
from prune_lab.run import artifacts, continuations
from prune_lab.run.continuations import Continued
from prune_lab.run.record import Unreadable, read_record
from prune_lab.run.title import prunes
from prune_lab.utils.files import read_regular
from prune_lab.utils.secrets import forgetting, redacted_override, without_known_secrets, without_secrets

ATTRIBUTES = (
    "model", "data", "method", "pattern", "level", "allocation", "finetune", "settings", "evaluation", "seed",
    "status", "written",
)  # fmt: skip
FILES = (artifacts.RECORD, artifacts.LAYERS, artifacts.ROUNDS, *continuations.FILES)
"""What a run is read from."""
_TOLD_ELSEWHERE = (
    "model", "data", "method", "method@method.inner", "sparsity", "sparsity.level", "sparsity.pattern", "allocation",
    "finetune", "seed",
)  # fmt: skip
"""Overrides that attributes of their own tell."""
NOT_OF_THE_MODEL = ("evaluate", "tracker", "save_model", "skip_finished", "keep_models", "objective", "hydra")
"""Sections that do not decide what becomes of the model."""
_MEASURES = ("sparsity", "relative_output_error", "block_relative_output_error")
_Point = TypeVar("_Point")
_ROUND = ("round", "sparsity", "perplexity_pruned", "perplexity_tuned", "loss")

# What the page carries of one run; beyond these a record is left out, or its part of the page is cut short.
MOST_METRICS = 2000
MOST_PROTOCOL = 2**20  # characters of JSON; that of a run has some ten thousand
_MOST_TEXT = 10_000  # of a message or a command
_MOST_NAME = 500  # of an attribute
_MOST_POINTS = 2000  # of a curve
_MOST_PROMPTS = 50  # with their continuations
_MOST_TABLE = 2**24  # bytes of a CSV file; a hundred thousand layers


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
        attributes: a value, or ``None``, for each of `ATTRIBUTES`; ``settings`` is for `told_apart`.
        typed: the overrides that no other attribute tells.
        metrics: by ``stage/metric``.
        metric_info: the descriptions of those metrics that the record describes.
        message: why it failed or was stopped.
        command: that repeats it.
        protocol: what the numbers rest on.
        held_out: losses of held-out samples, as steps and values.
        rounds: a row for each round of pruning and training in turns.
        layers: of the last pruning.
        continuations: prompts, and what the dense and the pruned model wrote after them.
        settings: the configuration, without secrets.
        identity: that runs have in common where one was taken from the other.
    """

    folder: str
    attributes: dict[str, Any]
    typed: tuple[str, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    metric_info: dict[str, MetricInfo] = field(default_factory=dict)
    message: str = ""
    command: str | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    held_out: tuple[tuple[float, float], ...] = ()
    rounds: tuple[tuple[float, ...], ...] = ()
    layers: Layers | None = None
    continuations: tuple[Continued, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    identity: str | None = None

    @property
    def status(self) -> str:
        """``finished``, ``failed`` or ``stopped``."""
        return str(self.attributes["status"])


@forgetting()
def read_run(folder: Path, name: str) -> ReportRun:
    """Reads a run folder.

    Args:
        folder: that holds ``record.json``.
        name: what the report calls it.

    Raises:
        Unreadable: the record is damaged.
        OSError: it is gone.
    """
    record = read_record(folder)
    _check_size(record)
    record = _without_secrets(record)
    protocol = record["protocol"]
    try:
        asked = read_asked(record, folder)
        attributes = _attributes(record, asked)
    except (TypeError, ValueError, AttributeError, KeyError, RecursionError) as error:
        raise Unreadable(f"its config is not that of a run: {error}") from error
    attributes |= {"status": _cut(record["status"], _MOST_NAME), "written": _written(folder / artifacts.RECORD)}
    return ReportRun(
        folder=name,
        attributes=attributes,
        typed=_typed(asked),
        metrics={key: float(value) for key, value in record["metrics"].items() if "/" in key},
        metric_info=_metric_info(record),
        message=_cut(str(record.get("error") or record.get("reason") or ""), _MOST_TEXT),
        command=None if asked.command is None else _cut(asked.command, _MOST_TEXT),
        protocol=protocol,
        held_out=_held_out(protocol),
        rounds=_rounds(folder / artifacts.ROUNDS),
        layers=_layers(folder / artifacts.LAYERS),
        continuations=_continuations(folder),
        settings=record["config"],
        identity=str(record["identity"]) if record.get("identity") else None,
    )


def _without_secrets(record: dict[str, Any]) -> dict[str, Any]:
    """A record without secrets, which those of earlier versions, or of others, may hold."""
    overrides = record.get("overrides")
    if isinstance(overrides, list):
        overrides = [redacted_override(each) if isinstance(each, str) else each for each in overrides]
    config = without_secrets(record["config"])
    safe: dict[str, Any] = without_known_secrets(record | {"overrides": overrides, "config": config})
    return safe


def block_and_kind(name: str) -> tuple[int, str] | None:
    """Of ``model.layers.3.mlp.up_proj``: 3 and ``mlp.up_proj``."""
    found = re.search(r"(?:^|\.)(\d+)\.(.+)$", name)
    return (int(found[1]), found[2]) if found else None


def _check_size(record: dict[str, Any]) -> None:
    """One record must not make the page too large for all others."""
    if len(record["metrics"]) > MOST_METRICS:
        raise Unreadable(f"it has {len(record['metrics']):,} metrics; at most {MOST_METRICS:,} fit into the page")
    if any(len(name) > _MOST_NAME for name in record["metrics"]):
        raise Unreadable(f"it has a metric whose name is longer than {_MOST_NAME} characters")
    for part in ("protocol", "config"):
        if len(json.dumps(record[part])) > MOST_PROTOCOL:
            raise Unreadable(f"its {part} has more than {MOST_PROTOCOL:,} characters, which do not fit into the page")


def _written(record: Path) -> str | None:
    try:
        return datetime.fromtimestamp(record.stat().st_mtime, timezone.utc).isoformat(timespec="seconds")
    except (ValueError, OverflowError):  # a time of change in another age
        return None


def _metric_info(record: dict[str, Any]) -> dict[str, MetricInfo]:
    described = {name: value for name, value in record["metric_info"].items() if name in record["metrics"]}
    found = {name: MetricInfo.from_json(value) for name, value in described.items()}
    return {name: info for name, info in found.items() if info is not None and len(info.title) <= _MOST_NAME}


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _attributes(record: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """What a run is told by; of one that failed before it had settings, what was typed."""
    config, typed = record["config"], asked.typed
    model, sparsity = config.get("model") or {}, config.get("sparsity") or {}
    loaded = record["protocol"].get("model")  # what the model turned out to be
    name = loaded.get("name") if isinstance(loaded, dict) else None
    named = {key: _text(asked.choice(key, config.get(key))) for key in ("data", "method", "allocation", "finetune")}
    if config and not {"finetune", "iterate"} & set(config.get("stages") or ()):
        named["finetune"] = "none"  # the settings of a training that did not take place
    if config.get("stages") and not prunes(config, config["stages"]):  # of a pruning that did not
        sparsity = {"pattern": None, "level": None}
        named |= {
            "method": named["method"] if {"prune", "iterate"} & set(config["stages"]) else None,
            "allocation": None,
        }
    return {
        "model": _text(name or (model_name(model) if model.get("path") else model.get("name") or typed.get("model"))),
        "data": named["data"],
        "method": named["method"],
        "pattern": _text(sparsity.get("pattern", typed.get("sparsity"))),
        "level": _number(sparsity.get("level", typed.get("sparsity.level"))),
        "allocation": named["allocation"],
        "finetune": named["finetune"],
        "settings": None,
        "evaluation": _text(evaluation_text(record["protocol"])),
        "seed": _whole(config.get("seed", typed.get("seed"))),
    }


def told_apart(runs: Sequence[ReportRun]) -> list[ReportRun]:
    """The runs with ``settings``: what was typed for some of them only, as ``method.power=0.5`` in a sweep."""
    common = set.intersection(*(set(run.typed) for run in runs)) if runs else set()
    return [_with_settings(run, [each for each in run.typed if each not in common]) for run in runs]


def _with_settings(run: ReportRun, own: Sequence[str]) -> ReportRun:
    return replace(run, attributes=run.attributes | {"settings": _text(" ".join(own))}) if own else run


def _typed(asked: Asked) -> tuple[str, ...]:
    """The overrides that tell what was made, beyond the choices and the level that are attributes of their own."""
    found = []
    for override in asked.overrides or ():
        key = override.lstrip("+~").partition("=")[0]
        if key not in _TOLD_ELSEWHERE and not key.startswith(NOT_OF_THE_MODEL):
            found.append(redacted_override(override))
    return tuple(sorted(found))


def _text(value: Any) -> str | None:
    return _cut(str(value), _MOST_NAME) if value not in (None, "") else None


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number.is_integer() and abs(number) < 2**63 else None


def _held_out(protocol: dict[str, Any]) -> tuple[tuple[float, float], ...]:
    for stage in ("finetune", "prune"):  # methods that train note theirs under prune
        found = protocol.get(stage)
        losses = found.get("held_out") if isinstance(found, dict) else None
        if isinstance(losses, dict) and losses:
            pairs = [(_number(step), _number(loss)) for step, loss in losses.items()]
            return _thinned(sorted((step, loss) for step, loss in pairs if step is not None and loss is not None))
    return ()


def _rounds(path: Path) -> tuple[tuple[float, ...], ...]:
    rows = [tuple(_or_nan(row.get(column)) for column in _ROUND) for row in _csv(path)]
    return _thinned([row for row in rows if not math.isnan(row[0])])


def _thinned(points: Sequence[_Point]) -> tuple[_Point, ...]:
    """All points, or as many of them as a curve may have, evenly spread, the last one among them."""
    step = max(1, math.ceil(len(points) / _MOST_POINTS))
    return tuple(points[len(points) - 1 :: -step][::-1]) if points else ()


def _layers(path: Path) -> Layers | None:
    rows = [row for row in _csv(path) if row.get("name")]
    measures = {key: tuple(_or_nan(row.get(key)) for row in rows) for key in _MEASURES}
    return Layers(tuple(row["name"] for row in rows), measures) if rows else None


def _continuations(folder: Path) -> tuple[Continued, ...]:
    found = continuations.read_continuations(folder)[:_MOST_PROMPTS]
    return tuple(
        Continued(_cut(each.prompt, _MOST_TEXT), {stage: _cut(text, _MOST_TEXT) for stage, text in each.texts.items()})
        for each in found
    )


def _csv(path: Path) -> list[dict[str, str]]:
    """The rows of a file beside the record; none where it is missing or damaged, as the record does without it."""
    try:
        return list(csv.DictReader(io.StringIO(read_regular(path, _MOST_TABLE), newline="")))
    except (OSError, ValueError, csv.Error):
        return []


def _or_nan(value: Any) -> float:
    number = _number(value)
    return math.nan if number is None else number
