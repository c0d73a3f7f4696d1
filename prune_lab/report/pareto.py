"""What no other run beats in two metrics at once: the Pareto front, as a table."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from prune_lab.report.grid import Grid
from prune_lab.report.metric import Metric
from prune_lab.report.records import Records, values
from prune_lab.report.spec import CONTROL, Front, TableSpec


@dataclass(frozen=True)
class Point:
    """A cell of a table in two metrics, means over seeds.

    Args:
        row: the values of the row.
        column: of the table; ``dense`` or ``control``.
        x: the one metric.
        y: the other.
        spread: standard deviation of ``y`` over seeds; 0 for one.
    """

    row: tuple[str, ...]
    column: str
    x: float
    y: float
    spread: float = 0.0


def front_of(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other one beats: none is as low in both and lower in one. By the first metric, rising."""
    order, front, lowest = sorted(range(len(points)), key=lambda index: points[index]), [], float("inf")
    for index in order:
        if points[index][1] < lowest:
            front.append(index)
            lowest = points[index][1]
    return front


def points_of(spec: TableSpec, front: Front, records: Records, subject: tuple[str, ...]) -> list[Point]:
    """Every cell of a model that has both metrics, the dense model first."""
    rows = [row for row in spec.row_values if spec.subject(row) == subject]
    found = [(rows[0], None)] + [(row, column) for row in rows for column in spec.columns]
    found += [(row, CONTROL) for row in spec.control_rows if spec.control and spec.subject(row) == subject]
    points = []
    for row, column in found:
        x, y = (values(records, row, column, metric) for metric in (front.x, front.y))
        if x and y:
            spread = statistics.stdev(y) if len(y) > 1 else 0.0
            points.append(Point(row, column or "dense", statistics.fmean(x), statistics.fmean(y), spread))
    return points


def front_grid(spec: TableSpec, front: Front, metric: Metric, records: Records) -> Grid:
    """The front of each model, by the first metric."""
    rows = []
    for subject in subjects_of(spec, records):
        points = points_of(spec, front, records, subject)
        for point in (points[index] for index in front_of([(point.x, point.y) for point in points])):
            spread = f" ± {metric.form.format(point.spread)}" if point.spread else ""
            cells = [front.form.format(point.x), metric.form.format(point.y) + spread]
            row = [value if point.column != "dense" or key == "model" else "-" for key, value in _keys(spec, point)]
            rows.append([*row, point.column, *cells])
    return Grid([*spec.rows, "setting", front.title, metric.title], rows, frozenset(range(1 + len(spec.rows))))


def subjects_of(spec: TableSpec, records: Records) -> list[tuple[str, ...]]:
    """The models (with their data, where rows differ in it) that any run is of."""
    run = {spec.subject(cell.row) for cell, _ in records}
    return [subject for subject in dict.fromkeys(spec.subject(row) for row in spec.row_values) if subject in run]


def _keys(spec: TableSpec, point: Point) -> Sequence[tuple[str, str]]:
    return list(spec.keys(point.row).items())
