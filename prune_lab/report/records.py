"""The runs of a table, and the numbers in them."""

import statistics
from typing import Any

from prune_lab.report.spec import Cell, Metric, TableSpec

Records = list[tuple[Cell, dict[str, Any]]]  # finished runs, with their record.json
Failures = list[tuple[Cell, str]]  # the others, with what went wrong


def measured(spec: TableSpec, records: Records) -> list[Metric]:
    """The metrics of the table that any run has."""
    return [metric for metric in spec.metrics if any(key_of(metric.name) in run["metrics"] for _, run in records)]


def key_of(metric: str, stage: str = "evaluate") -> str:
    """Where a record has a metric: ``prune/seconds`` names its stage, ``perplexity`` is that of ``stage``."""
    return metric if "/" in metric else f"{stage}/{metric}"


def values(records: Records, row: tuple[str, ...], column: str | None, metric: str) -> list[float]:
    """The metric in all seeds of a cell; with ``column=None`` that of the dense model."""
    if column is None and "/" in metric:  # of pruning, say: the dense model has none
        return []
    key = key_of(metric, "dense" if column is None else "evaluate")
    return [
        record["metrics"][key]
        for cell, record in records
        if cell.row == row and column in (None, cell.column) and key in record["metrics"]
    ]


def mean_and_spread(found: list[float], form: str) -> str:
    """Mean and standard deviation over seeds as text."""
    if not found:
        return "-"
    spread = f" ± {form.format(statistics.stdev(found))}" if len(found) > 1 else ""
    return form.format(statistics.fmean(found)) + spread
