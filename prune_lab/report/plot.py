"""Plots a metric of a table: a panel for each model and data set (or as it says), a line for the other row values."""

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from prune_lab.report.metric import Metric
from prune_lab.report.records import Records, values
from prune_lab.report.spec import CONTROL, TableSpec
from prune_lab.utils.svg import svg_writer


def plot_metric(spec: TableSpec, metric: Metric, records: Records) -> Callable[[Path], None]:
    """Draws the figure, and returns what writes it to a path as SVG; the same records give the same bytes."""
    run = {cell.row for cell, _ in records}
    rows = [row for row in spec.row_values if row in run]
    panels = list(dict.fromkeys(spec.panel(row) for row in rows))
    figure = Figure(figsize=(3.2 * len(panels) + 1.8, 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        for row in (row for row in rows if spec.panel(row) == panel):
            found = [values(records, row, column, metric.name) for column in spec.columns]
            shown = [(place, cell) for place, cell in enumerate(found) if cell]
            means = [statistics.fmean(cell) for _, cell in shown]
            spread = [statistics.stdev(cell) if len(cell) > 1 else 0.0 for _, cell in shown]
            label = " ".join(value for key, value in spec.keys(row).items() if key not in spec.panels)
            axis.errorbar([place for place, _ in shown], means, yerr=spread, marker="o", capsize=3, label=label)
        first = next(row for row in rows if spec.panel(row) == panel)
        dense = values(records, first, None, metric.name)
        control = values(records, spec.control_of(first), CONTROL, metric.name)
        if dense:
            axis.axhline(dense[0], color="black", linewidth=1, linestyle="--", label="dense")
        if control:
            axis.axhline(
                statistics.fmean(control), color="black", linewidth=1, linestyle=":", label="dense, trained alike"
            )
        axis.set(title=", ".join(panel), yscale=metric.scale or "linear", xlim=(-0.5, len(spec.columns) - 0.5))
        axis.set_xticks(range(len(spec.columns)), labels=list(spec.columns))
        if metric.scale == "log":  # 50, not 5 x 10^1
            axis.yaxis.set_major_formatter(LogFormatter())
            axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(metric.title)
    legend_beside(figure, axes)

    return svg_writer(figure, spec.name)


def legend_beside(figure: Figure, axes: Iterable[Axes]) -> None:
    """One legend for all panels, on their right, where it hides nothing."""
    handles: dict[str, Artist] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(list(handles.values()), list(handles), fontsize="small", loc="outside right upper")
