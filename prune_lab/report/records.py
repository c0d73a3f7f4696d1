"""The runs of a table, and the numbers in them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from prune_lab.evaluation.metric import MetricInfo
from prune_lab.report.evaluated import evaluation_of
from prune_lab.report.metric import Metric, is_evaluated, key_of
from prune_lab.report.spec import Cell, TableSpec
from prune_lab.run.metric_info import info_in, known_info
from prune_lab.utils.digests import json_digest

Records = list[tuple[Cell, dict[str, Any]]]  # finished runs, with their record.json
Failure = tuple[Cell, str]  # one of the others, with what went wrong
Failures = list[Failure]
UNKNOWN = "?"
"""Stands for what a record does not say, as it is damaged."""


def measured(spec: TableSpec, records: Records) -> list[Metric]:
    """The metrics of the table that any run has."""
    return [metric for metric in spec.metrics if any(key_of(metric.name) in run["metrics"] for _, run in records)]


def described_by(spec: TableSpec, records: Records) -> TableSpec:
    """Returns the table with the titles that its YAML leaves to the descriptions in the records."""

    def info_of(metric: Metric) -> MetricInfo:
        name = key_of(metric.name)
        if metric.is_described:  # a kept table has no description of it
            return known_info(name)
        return next((info for _, record in records if (info := info_in(record, name))), None) or known_info(name)

    return spec.described(info_of)


def values(records: Records, row: tuple[str, ...], column: str | None, metric: str) -> list[float]:
    """The metric in all seeds of a cell; with ``column=None`` that of the dense model."""
    if column is None and not is_evaluated(metric):  # of pruning, say: the dense model has none
        return []
    key = key_of(metric, "dense" if column is None else "evaluate")
    return [
        record["metrics"][key]
        for cell, record in records
        if cell.row == row and column in (None, cell.column) and key in record["metrics"]
    ]


def dense_values(spec: TableSpec, records: Records, row: tuple[str, ...], metric: str) -> list[float]:
    """The metric of a row's dense model in all runs of its model and data set that were evaluated as the row's.

    Returns:
        All values, as times differ; one, where they are all the same.
    """
    if not is_evaluated(metric):
        return []
    key = key_of(metric, "dense")
    protocols = {evaluation_key(record, key) for cell, record in records if cell.row == row}
    found = [
        record["metrics"][key]
        for cell, record in records
        if spec.subject(cell.row) == spec.subject(row) and key in record["metrics"]
        if cell.row == row or evaluation_key(record, key) in protocols
    ]
    return found[:1] if len(set(found)) == 1 else found


def evaluation_key(record: Mapping[str, Any], key: str) -> str:
    """Equal for runs whose values of a metric may be compared, as far as a kept table knows: model, text, device."""
    kept = {name: record["protocol"].get(name) for name in ("model", "data", "device")}
    info = MetricInfo(key, "seconds" if key.endswith("seconds") else "number")
    return json_digest(evaluation_of(kept, key, info))


def spread_of(found: Sequence[float]) -> float:
    """Standard deviation over seeds; 0 for one, NaN where one of them is not finite."""
    if not all(map(math.isfinite, found)):
        return math.nan
    return statistics.stdev(found) if len(found) > 1 else 0.0


def mean_and_spread(found: list[float], form: str) -> str:
    """Mean and standard deviation over seeds as text."""
    if not found:
        return "-"
    spread = f" ± {form.format(spread_of(found))}" if len(found) > 1 else ""
    return form.format(statistics.fmean(found)) + spread


def with_error(records: Records, row: tuple[str, ...], column: str, metric: Metric) -> str:
    """A cell of a metric as text: mean and spread over seeds, or the one number there is with its standard error."""
    found = values(records, row, column, metric.name)
    errors = values(records, row, column, metric.error) if metric.error and len(found) == 1 else []
    return mean_and_spread(found, metric.form) + "".join(f" ({metric.form.format(error)})" for error in errors[:1])


def dense_with_error(spec: TableSpec, records: Records, row: tuple[str, ...], metric: Metric) -> str:
    """The same of the dense model."""
    found = dense_values(spec, records, row, metric.name)
    errors = dense_values(spec, records, row, metric.error) if metric.error and len(found) == 1 else []
    return mean_and_spread(found, metric.form) + "".join(f" ({metric.form.format(error)})" for error in errors[:1])


def said(part: Mapping[str, Any], name: str) -> Any:
    """Returns what a part of a record says under a name; `UNKNOWN` where it says nothing."""
    value = part.get(name)
    return UNKNOWN if value is None else value
