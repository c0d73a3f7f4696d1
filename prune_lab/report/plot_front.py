"""Plots two metrics of a table against each other, with the Pareto front."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prune_lab.report.look import COLOURS, FILLS, MARKERS, end_at, label_points, legend_beside, readable
from prune_lab.report.metric import Metric
from prune_lab.report.pareto import Point, members, points_of, subjects_of
from prune_lab.report.records import Records
from prune_lab.report.spec import CONTROL, Front, TableSpec
from prune_lab.utils.svg import svg_writer


def plot_front(spec: TableSpec, front: Front, metric: Metric, records: Records) -> Callable[[Path], None]:
    """Draws all cells and the front, a panel for each model, and returns what writes the figure as SVG."""
    subjects = subjects_of(spec, front, records)
    figure = Figure(figsize=(2.4 + 4.2 * len(subjects), 4.2), layout="constrained")
    panels = figure.subplots(1, len(subjects), sharey=True, squeeze=False)[0]
    drawn, beyond, methods = [], [], _methods(spec)
    for axis, subject in zip(panels, subjects, strict=True):
        points = points_of(spec, front, subject)
        _draw_points(axis, spec, points)
        best = members(points, metric)
        style: dict[str, Any] = {"color": "black", "linewidth": 1, "zorder": 1, "label": "best of all (Pareto front)"}
        line = sorted((point.x, point.y) for point in best)
        axis.step([x for x, _ in line], [y for _, y in line], where="post", **style)
        axis.set(title=subject.title, xlabel=front.title, yscale=metric.scale or "linear")
        axis.grid(alpha=0.3)
        drawn.append((axis, points, best))
        beyond += [
            (axis, point.x, _look(methods.index(spec.keys(point.row).get("method", "")))["color"])
            for point in points
            if metric.limit is not None and point.y > metric.limit and point.column not in ("dense", CONTROL)
        ]
    for axis in panels:
        readable(axis.xaxis, "linear")
    end_at(panels, metric.limit, beyond)
    readable(panels[0].yaxis, metric.scale)
    panels[0].set_ylabel(metric.title)
    legend_beside(figure, panels)
    figure.draw_without_rendering()  # labels need to know where everything is
    for axis, points, best in drawn:
        named = [(point.x, point.y, "dense" if point.column == CONTROL else point.column) for point in best]
        label_points(axis, named, [(point.x, point.y) for point in points])

    return svg_writer(figure, spec.name)


def _draw_points(axis: Axes, spec: TableSpec, points: Sequence[Point]) -> None:
    """A colour and a marker for each method, a filling for each value of the last row key; means, spreads as bars."""
    keys = list(spec.rows)
    methods = _methods(spec)
    kinds = list(spec.rows[keys[-1]])
    several = keys[-1] not in ("model", "method")
    for point in points:
        row = spec.keys(point.row)
        look: dict[str, Any] = {"color": "black", "marker": "*", "markersize": 11, "fillstyle": "none", "zorder": 3}
        if point.column != "dense":
            look["fillstyle"] = FILLS[kinds.index(row[keys[-1]]) % len(FILLS)] if several else "full"
        if point.column not in ("dense", CONTROL):
            look |= {**_look(methods.index(row.get("method", ""))), "markersize": 6, "zorder": 2}
        bars: dict[str, Any] = {"xerr": point.x_spread or None, "yerr": point.spread or None}
        axis.errorbar(point.x, point.y, linewidth=0.8, linestyle="none", **bars, **look)
    for index, method in enumerate(methods):
        axis.plot([], [], linestyle="none", label=method, **_look(index))
    if any(point.column == "dense" for point in points):
        axis.plot([], [], "*", color="black", fillstyle="none", label="dense")
    if any(point.column == CONTROL for point in points):
        axis.plot([], [], "*", color="black", label="dense, trained alike")
    for index, kind in enumerate(kinds if several else ()):
        fill = FILLS[index % len(FILLS)]
        axis.plot([], [], "o", color="grey", fillstyle=fill, label=f"{keys[-1]}={kind}")


def _methods(spec: TableSpec) -> list[str]:
    return list(spec.rows.get("method", {"": ()}))


def _look(place: int) -> dict[str, Any]:
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
