"""Puts the runs of a table beside the published numbers: a line for each cell, and where each number was read."""

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prune_lab.report.grid import Grid
from prune_lab.report.metric import Metric, is_evaluated, key_of
from prune_lab.report.published import Published, find
from prune_lab.report.records import UNKNOWN, Failure, Records, dense_values, mean_and_spread, said, spread_of, values
from prune_lab.report.spec import TableSpec
from prune_lab.run.record import section_of

_OTHER_MODELS = (
    "Published numbers with a name in brackets are of that model and its paper's text: "
    "a difference between two models says nothing, so none is given."
)
_REASON_LENGTH = 100


@dataclass(frozen=True)
class Findings:
    """All that is known of a table: its runs, and what was published."""

    spec: TableSpec
    records: Records
    failures: Sequence[Failure] = ()
    published: Sequence[Published] = ()


@dataclass(frozen=True)
class Comparison:
    """A cell beside what was published for it.

    Args:
        row: the values of the row; ``-`` where the dense model has none.
        setting: the column, or ``dense``.
        metric: that is compared.
        published: for this very cell; ``None`` if nothing was.
        elsewhere: for the same cell of the table's own models, where the row's model is another one.
        ours: the metric in every finished run.
        not_run: why there is none, or which seeds are missing.
        protocol: of our runs.
    """

    row: tuple[str, ...]
    setting: str
    metric: Metric
    published: Published | None
    elsewhere: tuple[Published, ...]
    ours: tuple[float, ...]
    not_run: str
    protocol: str

    @property
    def difference(self) -> float | None:
        """Ours less the published number."""
        return statistics.fmean(self.ours) - self.published.value if self.ours and self.published else None


def compare(findings: Findings, metric: Metric) -> list[Comparison]:
    """Every cell of a table, and once for each model and data set the dense model."""
    spec, lines, seen = findings.spec, [], set()
    for row in spec.row_values:
        if spec.subject(row) not in seen:
            lines.append(_dense(findings, metric, row))
        seen.add(spec.subject(row))
        lines += [_cell(findings, metric, row, column) for column in spec.columns]
    return lines


def comparison_grid(spec: TableSpec, lines: Sequence[Comparison], origins: list[str]) -> Grid:
    """The comparison as a table.

    Args:
        spec: the table.
        lines: to print.
        origins: of the published numbers, in the order of their footnotes; grows by those of these lines.
    """
    heads = [*spec.rows, "setting", "published", "ours", "difference", "protocol"]
    rows = [
        [*line.row, line.setting, _published(line, origins), _ours(line), _difference(line), line.protocol]
        for line in lines
    ]
    return Grid(heads, rows, frozenset([*range(1 + len(spec.rows)), len(heads) - 1]))


def remark(lines: Sequence[Comparison]) -> str | None:
    """What has to be said of published numbers that are of other models."""
    return _OTHER_MODELS if any(line.elsewhere for line in lines) else None


def footnotes(origins: Sequence[str]) -> list[str]:
    """Where the published numbers were read."""
    return [f"[^{number}]: {origin}" for number, origin in enumerate(origins, start=1)]


def comparison_csv(spec: TableSpec, lines: Sequence[Comparison]) -> str:
    """The comparison as a CSV, without the numbers of other models."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = ["published", "ours", "spread", "runs", "difference", "difference_percent"]
    writer.writerow([*spec.rows, "setting", "metric", *numbers, "not_run", "protocol", "table", "source", "evidence"])
    for line in lines:
        about = line.published
        ours = statistics.fmean(line.ours) if line.ours else ""
        spread = spread_of(line.ours) if len(line.ours) > 1 else ""
        percent = "" if line.difference is None or not about else 100 * line.difference / about.value
        found = [about.value if about else "", ours, spread, len(line.ours)]
        difference = "" if line.difference is None else line.difference
        origin = [about.table, about.source, about.evidence] if about else ["", "", ""]
        what = [*line.row, line.setting, line.metric.name]
        writer.writerow([*what, *found, difference, percent, line.not_run, line.protocol, *origin])
    return text.getvalue()


def _dense(findings: Findings, metric: Metric, row: tuple[str, ...]) -> Comparison:
    """The line of the dense model, measured in any run of its model and data set."""
    spec, subject = findings.spec, findings.spec.subject(row)
    mine = [(cell, record) for cell, record in findings.records if spec.subject(cell.row) == subject]
    key = key_of(metric.name, "dense") if is_evaluated(metric.name) else None  # of pruning, the dense model has none
    mine = [(cell, record) for cell, record in mine if key in record["metrics"]]
    reasons = [reason for cell, reason in findings.failures if spec.subject(cell.row) == subject]
    keys = {key: value for key, value in spec.keys(row).items() if key in ("model", "data")} | {"method": "dense"}
    published, elsewhere = _numbers(findings, keys, "dense", spec.data_of(row), metric)
    return Comparison(
        row=tuple(keys.get(key, "-") for key in spec.rows),
        setting="dense",
        metric=metric,
        published=published,
        elsewhere=elsewhere,
        ours=tuple(dense_values(spec, findings.records, row, metric.name)),
        not_run="" if mine else _why(reasons),
        protocol=_protocol(mine, dense=True) if mine else "-",
    )


def _cell(findings: Findings, metric: Metric, row: tuple[str, ...], column: str) -> Comparison:
    spec = findings.spec
    mine = [(cell, record) for cell, record in findings.records if (cell.row, cell.column) == (row, column)]
    failed = [(cell, reason) for cell, reason in findings.failures if (cell.row, cell.column) == (row, column)]
    found = values(mine, row, column, metric.name)
    not_run = "" if found and not failed else _why([reason for _, reason in failed])
    if found and failed:
        not_run = f"seed {', '.join(str(cell.seed) for cell, _ in failed)}: {not_run}"
    published, elsewhere = _numbers(findings, spec.keys(row), column, spec.data_of(row), metric)
    return Comparison(
        row=row,
        setting=column,
        metric=metric,
        published=published,
        elsewhere=elsewhere,
        ours=tuple(found),
        not_run=not_run,
        protocol=_protocol(mine) if found else "-",
    )


def _numbers(
    findings: Findings, keys: dict[str, str], setting: str, data: str | None, metric: Metric
) -> tuple[Published | None, tuple[Published, ...]]:
    """What was published for a cell; for a model that is not the paper's, what was published for the paper's own."""
    spec, published = findings.spec, findings.published
    same = find(published, keys, setting, data, metric.name)
    if same or keys.get("model") in spec.models:
        return (same[0] if same else None), ()
    rows = [keys | {"model": model} for model in spec.models]
    found = [number for row in rows for number in find(published, row, setting, data, metric.name)]
    if not found:  # the text is another one, too
        found = [number for row in rows for number in find(published, row, setting, spec.data, metric.name)]
    return None, tuple(found)


def _why(reasons: Sequence[str]) -> str:
    """The first reason, shortened."""
    return brief_reason(reasons[0]) if reasons else "no run has it"


def brief_reason(reason: str) -> str:
    """Returns the first line of why a run has failed, shortened."""
    lines = reason.strip().splitlines() or ["no reason given"]
    return lines[0] if len(lines[0]) <= _REASON_LENGTH else lines[0][:_REASON_LENGTH].rstrip() + " ..."


def _protocol(records: Records, *, dense: bool = False) -> str:
    """What the runs of a cell did, in a few words."""
    record = records[0][1]
    calibration, evaluation = (section_of(record, "protocol", "data", part) for part in ("calibration", "evaluation"))
    seqlen = evaluation.get("seqlen") or said(calibration, "seqlen")
    dtype = said(section_of(record, "protocol", "model"), "dtype")
    parts = [f"{_text(evaluation)}, windows of {seqlen}", str(dtype)]
    if not dense:
        seeds = [str(cell.seed) for cell, _ in records]
        parts = [
            _layers(record),
            _chosen_on(record),
            *parts,
            f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}",
        ]
    return "; ".join(parts)


def _chosen_on(record: dict[str, Any]) -> str:
    """The text that decided what to prune: of the training, or of the calibration."""
    pruned, calibration = section_of(record, "protocol", "prune"), section_of(record, "protocol", "data", "calibration")
    if "steps" in pruned:
        steps, samples, seqlen = (said(pruned, name) for name in ("steps", "batch_size", "seqlen"))
        return f"trained on {_text(section_of(record, 'protocol', 'training'))}, {steps} steps of {samples} x {seqlen}"
    samples, seqlen = (said(calibration, name) for name in ("samples", "seqlen"))
    return f"calibrated on {_text(calibration)}, {samples} x {seqlen}"


def _layers(record: dict[str, Any]) -> str:
    layers = section_of(record, "config", "sparsity").get("layers")
    if not layers:
        return "all blocks"
    is_range = isinstance(layers, list) and len(layers) == 2 and all(type(each) is int for each in layers)
    return f"blocks {layers[0]} to {layers[1] - 1}" if is_range else f"blocks {UNKNOWN}"


def _text(part: dict[str, Any]) -> str:
    return " ".join(str(part[name]) for name in ("source", "split") if part.get(name) is not None) or UNKNOWN


def _published(line: Comparison, origins: list[str]) -> str:
    texts = []
    for number in [line.published] if line.published else line.elsewhere:
        if number.origin not in origins:
            origins.append(number.origin)
        name = "" if line.published else f" ({number.keys['model']})"
        texts.append(f"{line.metric.form.format(number.value)}{name}[^{origins.index(number.origin) + 1}]")
    return ", ".join(texts) or "-"


def _ours(line: Comparison) -> str:
    not_run = f"not run: {line.not_run}" if line.not_run else ""
    return "; ".join(filter(None, [mean_and_spread(list(line.ours), line.metric.form) if line.ours else "", not_run]))


def _difference(line: Comparison) -> str:
    if line.difference is None or line.published is None:
        return "-"
    return f"{line.metric.form.replace('{:', '{:+')} ({{:+.1%}})".format(
        line.difference, line.difference / line.published.value
    )
