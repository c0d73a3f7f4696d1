"""The runs of a table, and the numbers in them."""

import statistics
from typing import Any

from prune_lab.report.spec import Cell, Metric, TableSpec

Records = list[tuple[Cell, dict[str, Any]]]  # finished runs, with their record.json
Failures = list[tuple[Cell, str]]  # the others, with what went wrong


def measured(spec: TableSpec, records: Records) -> list[Metric]:
    """The metrics of the table that any run has."""
    return [metric for metric in spec.metrics if any(f"evaluate/{metric.name}" in run["metrics"] for _, run in records)]


def values(records: Records, row: tuple[str, ...], column: str | None, metric: str) -> list[float]:
    """The metric in all seeds of a cell; with ``column=None`` that of the dense model."""
    stage = "dense" if column is None else "evaluate"
    return [
        record["metrics"][f"{stage}/{metric}"]
        for cell, record in records
        if cell.row == row and column in (None, cell.column) and f"{stage}/{metric}" in record["metrics"]
    ]


def mean_and_spread(found: list[float], form: str) -> str:
    """Mean and standard deviation over seeds as text."""
    if not found:
        return "-"
    spread = f" ± {form.format(statistics.stdev(found))}" if len(found) > 1 else ""
    return form.format(statistics.fmean(found)) + spread
