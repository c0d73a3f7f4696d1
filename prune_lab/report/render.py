"""Writes a table of runs: a CSV of every run, Markdown with mean and spread, and a plot for each metric."""

import csv
import io
import statistics
from pathlib import Path
from typing import Any

from prune_lab.files import write_atomically, write_text
from prune_lab.report.spec import Cell, Metric, TableSpec

Records = list[tuple[Cell, dict[str, Any]]]


def write_report(spec: TableSpec, records: Records, folder: Path) -> str:
    """Writes ``NAME.csv``, ``tables/NAME.md`` and, with matplotlib installed, ``plots/NAME_METRIC.svg``.

    Returns:
        The Markdown.
    """
    text = _markdown(spec, records)
    write_text(folder / f"{spec.name}.csv", _csv(spec, records))
    write_text(folder / "tables" / f"{spec.name}.md", text)
    try:
        from prune_lab.report.plot import plot_metric
    except ImportError:  # the extra `plots` is not installed
        return text
    for metric in measured(spec, records):
        figure = plot_metric(spec, metric, records)
        write_atomically(folder / "plots" / f"{spec.name}_{metric.name}.svg", figure)
    return text


def update_readme(readme: Path, spec: TableSpec, records: Records) -> None:
    """Puts the table of the first metric between the marks ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``."""
    begin, end = f"<!-- {spec.name}:begin -->", f"<!-- {spec.name}:end -->"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    if begin not in text or end not in text:
        return
    before, _, rest = text.partition(begin)
    metric = measured(spec, records)[0]
    title = f"{spec.title}: {metric.title.lower()}, mean ± standard deviation over {len(spec.seeds)} seeds."
    grid = "\n".join(table_lines(spec, metric, records))
    write_text(readme, f"{before}{begin}\n{title}\n\n{grid}\n{end}{rest.partition(end)[2]}")


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


def _markdown(spec: TableSpec, records: Records) -> str:
    lines = [f"# {spec.title}", ""]
    for metric in measured(spec, records):
        lines += [f"## {metric.title}", "", *table_lines(spec, metric, records), ""]
    return "\n".join([*lines, "## Protocol", "", *_protocol(spec, records), ""])


def table_lines(spec: TableSpec, metric: Metric, records: Records) -> list[str]:
    """The Markdown table of one metric: a row for each combination of the row keys."""
    lines = [
        "| " + " | ".join([*spec.rows, "dense", *spec.columns]) + " |",
        "|" + "---|" * len(spec.rows) + "---:|" * (1 + len(spec.columns)),
    ]
    for row in spec.row_values:
        dense = values(records, row, None, metric.name)
        cells = [metric.form.format(dense[0]) if dense else "-"]
        cells += [_mean_and_spread(values(records, row, column, metric.name), metric.form) for column in spec.columns]
        lines.append("| " + " | ".join([*row, *cells]) + " |")
    return lines


def _mean_and_spread(found: list[float], form: str) -> str:
    if not found:
        return "-"
    spread = f" ± {form.format(statistics.stdev(found))}" if len(found) > 1 else ""
    return form.format(statistics.fmean(found)) + spread


def _protocol(spec: TableSpec, records: Records) -> list[str]:
    """What all numbers have in common, and where runs differ."""
    lines = [
        f"- cells: mean ± standard deviation over {len(spec.seeds)} seeds ({', '.join(map(str, spec.seeds))})",
        f"- settings of every run: `{' '.join(spec.overrides)}`; columns: "
        + "; ".join(f"{name} = `{' '.join(added)}`" for name, added in spec.columns.items()),
    ]
    seen: dict[str, set[str]] = {}
    for _, record in records:
        for name, value in _facts(record["protocol"]).items():
            seen.setdefault(name, set()).add(value)
    return lines + [f"- {name}: {'; '.join(sorted(found))}" for name, found in seen.items()]


def _facts(protocol: dict[str, Any]) -> dict[str, str]:
    data, packages = protocol["data"], protocol["packages"]
    calibration, evaluation = data.get("calibration", {}), data.get("evaluation", {})
    versions = ", ".join(
        f"{name} {packages[name]}" for name in ("prune_lab", "python", "torch", "transformers", "lm-eval")
    )
    return {
        "calibration": _brief(calibration, "source", "split", "sampling", "samples", "seqlen"),
        "perplexity": "exp of the mean over windows of the mean next-token cross-entropy; "
        + _brief(evaluation, "source", "split", "join", "seqlen", "windows", "dropped_tokens"),
        "weights": f"{protocol['model']['dtype']} on {protocol['device']}",
        "packages": versions,
    }


def _brief(part: dict[str, Any], *names: str) -> str:
    return ", ".join(f"{name} {part[name]!r}" for name in names if part.get(name) is not None)


def _csv(spec: TableSpec, records: Records) -> str:
    names = [f"{stage}/{metric.name}" for metric in spec.metrics for stage in ("dense", "evaluate")]
    names.append("prune/sparsity")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*spec.rows, "column", "seed", *names, "key"])
    for cell, record in records:
        numbers = [record["metrics"].get(name, "") for name in names]
        writer.writerow([*cell.row, cell.column, cell.seed, *numbers, record["key"]])
    return text.getvalue()
