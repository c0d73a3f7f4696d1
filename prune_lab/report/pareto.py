"""What no other run beats in two metrics at once: the Pareto front, as a table and as a plot."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prune_lab.report.records import Records, values
from prune_lab.report.spec import CONTROL, Front, Metric, TableSpec

if TYPE_CHECKING:  # the extra `plots` may not be installed
    from matplotlib.axes import Axes

_MARKERS = "osD^vP*X"


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


def front_lines(spec: TableSpec, front: Front, metric: Metric, records: Records) -> list[str]:
    """The front of each model as a Markdown table, by the first metric."""
    lines = [
        "| " + " | ".join([*spec.rows, "setting", front.title.lower(), metric.title.lower()]) + " |",
        "|" + "---|" * (1 + len(spec.rows)) + "---:|" * 2,
    ]
    for subject in _subjects(spec, records):
        points = points_of(spec, front, records, subject)
        for point in (points[index] for index in front_of([(point.x, point.y) for point in points])):
            spread = f" ± {metric.form.format(point.spread)}" if point.spread else ""
            cells = [front.form.format(point.x), metric.form.format(point.y) + spread]
            row = [value if point.column != "dense" or key == "model" else "-" for key, value in _keys(spec, point)]
            lines.append("| " + " | ".join([*row, point.column, *cells]) + " |")
    return lines


def plot_front(spec: TableSpec, front: Front, metric: Metric, records: Records) -> Callable[[Path], None]:
    """Draws all cells and the front, a panel for each model, and returns what writes the figure as SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    subjects = _subjects(spec, records)
    figure = Figure(figsize=(1.8 + 4.2 * len(subjects), 4.2), layout="constrained")
    panels = figure.subplots(1, len(subjects), sharey=True, squeeze=False)[0]
    for axis, subject in zip(panels, subjects, strict=True):
        points = points_of(spec, front, records, subject)
        _draw_points(axis, spec, points)
        best = [points[index] for index in front_of([(point.x, point.y) for point in points])]
        style = {"color": "black", "linewidth": 1, "zorder": 1, "label": "best of all (Pareto front)"}
        axis.step([point.x for point in best], [point.y for point in best], where="post", **style)
        axis.set(title=", ".join(subject), xlabel=front.title, yscale=metric.scale)
        axis.grid(alpha=0.3)
    panels[0].set_ylabel(metric.title)
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize="small", loc="outside right upper")

    def write(path: Path) -> None:
        with matplotlib.rc_context({"svg.hashsalt": spec.name, "svg.fonttype": "path"}):
            figure.savefig(path, format="svg", metadata={"Date": None})

    return write


def _draw_points(axis: "Axes", spec: TableSpec, points: Sequence[Point]) -> None:
    """A colour for each method, a marker for each value of the last row key; means, with the spread as a bar."""
    keys = list(spec.rows)
    methods = list(spec.rows.get("method", {"": ()}))
    kinds = list(spec.rows[keys[-1]])
    several = keys[-1] not in ("model", "method")
    for point in points:
        row = spec.keys(point.row)
        dense = point.column in ("dense", CONTROL)
        colour = "black" if dense else f"C{methods.index(row.get('method', ''))}"
        marker = _MARKERS[kinds.index(row[keys[-1]]) % len(_MARKERS)] if several and point.column != "dense" else "o"
        size = {"markersize": 9, "fillstyle": "none"} if dense else {"markersize": 6}
        axis.errorbar(point.x, point.y, yerr=point.spread, marker=marker, color=colour, linewidth=1, **size)
    for index, method in enumerate(methods):
        axis.plot([], [], "o", color=f"C{index}", label=method)
    axis.plot([], [], "o", color="black", fillstyle="none", label="dense")
    for index, kind in enumerate(kinds if several else ()):
        axis.plot([], [], _MARKERS[index % len(_MARKERS)], color="grey", label=f"{keys[-1]}={kind}")


def _subjects(spec: TableSpec, records: Records) -> list[tuple[str, ...]]:
    run = {spec.subject(cell.row) for cell, _ in records}
    return [subject for subject in dict.fromkeys(spec.subject(row) for row in spec.row_values) if subject in run]


def _keys(spec: TableSpec, point: Point) -> Sequence[tuple[str, str]]:
    return list(spec.keys(point.row).items())
