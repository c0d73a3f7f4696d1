"""Plots a metric of a table: a panel for each model and data set (or as it says), a series for the other row values."""

import itertools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prune_lab.report.look import end_at, legend_beside, readable, style_of
from prune_lab.report.metric import Metric, key_of
from prune_lab.report.places import Places, places_of
from prune_lab.report.records import Records, dense_values, evaluation_key, spread_of, values
from prune_lab.report.spec import CONTROL, TableSpec
from prune_lab.utils.svg import svg_writer

_LONGEST = 10  # characters of a line below the axis
_INCHES = 0.085  # of a character there
_OF_CONTROLS: tuple[Any, ...] = (
    ":",
    "-.",
    (0, (8, 3)),
    (0, (1, 4)),
)  # the lines of dense models that are trained alike


def plot_metric(spec: TableSpec, metric: Metric, records: Records) -> Callable[[Path], None]:
    """Draws the figure, and returns what writes it to a path as SVG; the same records give the same bytes."""
    run = {cell.row for cell, _ in records}
    rows = [row for row in spec.row_values if row in run]
    panels = list(dict.fromkeys(spec.panel(row) for row in rows))
    places = places_of(spec.columns)
    series = list(dict.fromkeys(_label(spec, row) for row in spec.row_values))  # a style each, in whichever panel
    width = max(2.8, 0.62 * len(spec.columns) + 0.06 * len(series))
    figure = Figure(figsize=(width * len(panels) + 2.2, 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    beyond: list[tuple[Axes, float, str]] = []
    for axis, panel in zip(axes, panels, strict=True):
        own = [row for row in rows if spec.panel(row) == panel]
        _draw_dense(axis, spec, metric, records, own)
        for row in own:
            for x, colour in _draw_series(axis, spec, metric, records, row, places, series):
                beyond.append((axis, x, colour))
        axis.set(title=", ".join(panel), yscale=metric.scale or "linear", xlim=places.limits)
        _label_columns(axis, places, width)
        axis.grid(alpha=0.3)
    end_at(axes, metric.limit, beyond)
    readable(axes[0].yaxis, metric.scale)
    axes[0].set_ylabel(metric.title)
    legend_beside(figure, axes)

    return svg_writer(figure, spec.name)


def _label(spec: TableSpec, row: tuple[str, ...]) -> str:
    return " ".join(value for key, value in spec.keys(row).items() if key not in spec.panels)


def _draw_series(
    axis: Axes,
    spec: TableSpec,
    metric: Metric,
    records: Records,
    row: tuple[str, ...],
    places: Places,
    series: Sequence[str],
) -> list[tuple[float, str]]:
    """Means with their spread; a line joins levels of one pattern that were evaluated alike, and nothing else.

    Returns:
        Places and colours of what lies beyond the metric's limit.
    """
    label, key = _label(spec, row), key_of(metric.name)
    number = series.index(label)
    style = style_of(number)
    joined: list[tuple[float, float, frozenset[str]]] = []
    beyond = []
    for column in sorted(places.all, key=places.all.__getitem__):
        found = values(records, row, column, metric.name)
        if not found:
            continue
        x, mean = places.dodged(column, number, len(series)), statistics.fmean(found)
        spread = spread_of(found) or None
        if metric.limit is not None and mean > metric.limit:
            beyond.append((x, style["color"]))
        point = {key: style[key] for key in ("color", "marker")}
        axis.errorbar(x, mean, yerr=spread, linestyle="none", markersize=5, capsize=2.5, **point)
        if column in places.levels:
            cell = [record for cell, record in records if (cell.row, cell.column) == (row, column)]
            joined.append((x, mean, frozenset(evaluation_key(record, key) for record in cell)))
    for (x, y, before), (next_x, next_y, after) in itertools.pairwise(joined):
        if before == after:
            axis.plot([x, next_x], [y, next_y], color=style["color"], linestyle=style["linestyle"], linewidth=1.3)
    lines = style if len(places.levels) > 1 else style | {"linestyle": "none"}
    axis.plot([], [], markersize=5, label=label, **lines)
    return beyond


def _draw_dense(axis: Axes, spec: TableSpec, metric: Metric, records: Records, rows: Sequence[tuple[str, ...]]) -> None:
    """The dense model's mean as a line over the panel, its spread as a band; likewise as each row trained it."""
    _draw_level(axis, dense_values(spec, records, rows[0], metric.name), "--", "dense")
    trained = {each: values(records, each, CONTROL, metric.name) for each in map(spec.control_of, rows)}
    trained = {row: found for row, found in trained.items() if found}
    for (row, found), line in zip(trained.items(), itertools.cycle(_OF_CONTROLS), strict=False):
        how = [value for key, value in spec.keys(row).items() if key != "method" and key not in spec.panels]
        _draw_level(axis, found, line, ", ".join(["dense, trained alike", *(how if len(trained) > 1 else [])]))


def _draw_level(axis: Axes, found: list[float], line: Any, label: str) -> None:
    if not found:
        return
    mean, spread = statistics.fmean(found), spread_of(found)
    axis.axhline(mean, color="black", linewidth=1, linestyle=line, label=label)
    if spread:
        axis.axhspan(mean - spread, mean + spread, color="black", alpha=0.08, linewidth=0)


def _label_columns(axis: Axes, places: Places, width: float) -> None:
    """Names of columns below the axis, in lines that do not reach into each other."""
    names = {name: "\n".join(wrap(name, _LONGEST)) for name in places.all}
    low, high = places.limits
    inches = (width - 0.4) / (high - low)
    placed = sorted((place, max(map(len, names[name].splitlines())) * _INCHES) for name, place in places.all.items())
    meet = any(
        (wide + next_wide) / 2 > (after - before) * inches
        for (before, wide), (after, next_wide) in itertools.pairwise(placed)
    )
    turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if meet else {}
    axis.set_xticks(list(places.all.values()), labels=list(names.values()), fontsize="small", **turned)
    if places.divider is not None:
        axis.axvline(places.divider, color="grey", linewidth=0.8)
    if len(places.levels) > 1:
        axis.set_xlabel("level of sparsity" + (" | other patterns" if places.others else ""), fontsize="small")
