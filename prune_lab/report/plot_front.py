"""Plots two metrics of a table against each other, with the Pareto front."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prune_lab.report.metric import Metric
from prune_lab.report.pareto import Point, front_of, points_of, subjects_of
from prune_lab.report.plot import legend_beside
from prune_lab.report.records import Records
from prune_lab.report.spec import CONTROL, Front, TableSpec
from prune_lab.utils.svg import svg_writer

_MARKERS = "osD^vP*X"


def plot_front(spec: TableSpec, front: Front, metric: Metric, records: Records) -> Callable[[Path], None]:
    """Draws all cells and the front, a panel for each model, and returns what writes the figure as SVG."""
    subjects = subjects_of(spec, records)
    figure = Figure(figsize=(1.8 + 4.2 * len(subjects), 4.2), layout="constrained")
    panels = figure.subplots(1, len(subjects), sharey=True, squeeze=False)[0]
    for axis, subject in zip(panels, subjects, strict=True):
        points = points_of(spec, front, records, subject)
        _draw_points(axis, spec, points)
        best = [points[index] for index in front_of([(point.x, point.y) for point in points])]
        style = {"color": "black", "linewidth": 1, "zorder": 1, "label": "best of all (Pareto front)"}
        axis.step([point.x for point in best], [point.y for point in best], where="post", **style)
        axis.set(title=", ".join(subject), xlabel=front.title, yscale=metric.scale or "linear")
        axis.grid(alpha=0.3)
    panels[0].set_ylabel(metric.title)
    legend_beside(figure, panels)

    return svg_writer(figure, spec.name)


def _draw_points(axis: Axes, spec: TableSpec, points: Sequence[Point]) -> None:
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
