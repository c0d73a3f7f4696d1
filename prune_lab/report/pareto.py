"""What no other run beats in two metrics at once: the Pareto front, as a table."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from prune_lab.report.evaluated import evaluation_text
from prune_lab.report.grid import Grid
from prune_lab.report.metric import Metric, key_of, small_title
from prune_lab.report.records import Records, dense_values, evaluation_key, spread_of, values
from prune_lab.report.spec import CONTROL, Front, TableSpec


@dataclass(frozen=True)
class Subject:
    """What one front is of: a model (with its data, where rows differ in it), evaluated in one way.

    Attributes:
        values: of the rows.
        records: its runs.
        evaluation: on what text, where the table has several; else empty.
    """

    values: tuple[str, ...]
    records: Records
    evaluation: str = ""

    @property
    def title(self) -> str:
        """Of a panel."""
        return ", ".join(filter(None, [*self.values, self.evaluation]))


@dataclass(frozen=True)
class Point:
    """A cell of a table in two metrics, means over seeds.

    Args:
        row: the values of the row.
        column: of the table; ``dense`` or ``control``.
        x: the one metric.
        y: the other.
        x_spread: standard deviation of ``x`` over seeds; 0 for one.
        spread: of ``y``, likewise.
        noise: whether ``x`` differs from the dense model's by no more than the larger of their spreads.
    """

    row: tuple[str, ...]
    column: str
    x: float
    y: float
    x_spread: float = 0.0
    spread: float = 0.0
    noise: bool = False


def front_of(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other one beats: none is as low in both and lower in one. By the first metric, rising."""
    order, front, lowest = sorted(range(len(points)), key=lambda index: points[index]), [], float("inf")
    for index in order:
        if points[index][1] < lowest:
            front.append(index)
            lowest = points[index][1]
    return front


def members(points: Sequence[Point], metric: Metric) -> list[Point]:
    """The front of a model's cells; an ``x`` that is noise counts as the dense model's, which it is not told from.

    Args:
        points: all of them.
        metric: ``y``, which is better when lower unless it says otherwise.
    """
    dense = next((point.x for point in points if point.column == "dense"), 0.0)
    sign = -1 if metric.better == "higher" else 1
    found = front_of([(dense if point.noise else point.x, sign * point.y) for point in points])
    return [points[index] for index in found]


def points_of(spec: TableSpec, front: Front, subject: Subject) -> list[Point]:
    """Every cell of a model that has both metrics, the dense model first."""
    rows = [row for row in spec.row_values if spec.subject(row) == subject.values]
    cells: list[tuple[tuple[str, ...], str]] = [(row, column) for row in rows for column in spec.columns]
    cells += [(row, CONTROL) for row in spec.control_rows if spec.control and spec.subject(row) == subject.values]
    run = next((row for row in rows if any(cell.row == row for cell, _ in subject.records)), rows[0])
    metrics = (front.x, front.y)
    dense = [dense_values(spec, subject.records, run, metric) for metric in metrics]
    measured = [(run, "dense", dense)]
    measured += [(*cell, [values(subject.records, *cell, metric) for metric in metrics]) for cell in cells]
    points: list[Point] = []
    for row, column, (x, y) in measured:
        if x and y:
            spread, noise = spread_of(x), False
            if dense[0] and column != "dense":
                away = abs(statistics.fmean(x) - statistics.fmean(dense[0]))
                noise = 0 < away <= max(spread, spread_of(dense[0]))
            points.append(Point(row, column, statistics.fmean(x), statistics.fmean(y), spread, spread_of(y), noise))
    return points


def front_grid(spec: TableSpec, front: Front, metric: Metric, records: Records) -> Grid:
    """The front of each model, by the first metric."""
    rows = []
    for subject in subjects_of(spec, front, records):
        for point in members(points_of(spec, front, subject), metric):
            spread = f" ± {metric.form.format(point.spread)}" if point.spread else ""
            x_spread = f" ± {front.form.format(point.x_spread)}" if point.x_spread else ""
            x = front.form.format(point.x) + x_spread + (" (noise)" if point.noise else "")
            row = [value if point.column != "dense" or key == "model" else "-" for key, value in _keys(spec, point)]
            setting = ", ".join(filter(None, [point.column, subject.evaluation]))
            rows.append([*row, setting, x, metric.form.format(point.y) + spread])
    return Grid([*spec.rows, "setting", front.title, metric.title], rows, frozenset(range(1 + len(spec.rows))))


def front_note(spec: TableSpec, front: Front, records: Records) -> str | None:
    """What has to be said of a front that has noise among its cells."""
    every = [point for subject in subjects_of(spec, front, records) for point in points_of(spec, front, subject)]
    cells = [point.noise for point in every if point.column != "dense"]
    return _NOISE.format(sum(cells), len(cells), small_title(front.title)) if any(cells) else None


_NOISE = (
    "{} of {} cells differ from the dense model in {} by no more than the larger of the two standard deviations. "
    "That is noise, and counts as the dense model's value here."
)


def subjects_of(spec: TableSpec, front: Front, records: Records) -> list[Subject]:
    """The models (with their data, where rows differ in it) that any run is of, evaluated in one way each."""
    found: dict[tuple[str, ...], dict[str, Records]] = {}
    for cell, record in records:
        key = " ".join(evaluation_key(record, key_of(metric)) for metric in (front.x, front.y))
        found.setdefault(spec.subject(cell.row), {}).setdefault(key, []).append((cell, record))
    subjects = []
    for values_ in dict.fromkeys(spec.subject(row) for row in spec.row_values):
        ways = list(found.get(values_, {}).values())
        for number, own in enumerate(ways, start=1):
            text = evaluation_text(own[0][1]["protocol"]) or "evaluation"
            subjects.append(Subject(values_, own, f"{text} ({number})" if len(ways) > 1 else ""))
    return subjects


def _keys(spec: TableSpec, point: Point) -> Sequence[tuple[str, str]]:
    return list(spec.keys(point.row).items())
