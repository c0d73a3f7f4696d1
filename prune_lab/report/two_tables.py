"""Two results of one table side by side: what differs in the protocols first, then every cell with its difference."""

import json
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prune_lab.errors import BadInput
from prune_lab.report.archive import read_runs
from prune_lab.report.compare import Findings
from prune_lab.report.grid import Grid, markdown
from prune_lab.report.metric import Metric, key_of
from prune_lab.report.records import dense_values, evaluation_key, mean_and_spread, measured, spread_of, values
from prune_lab.report.spec import CONTROL

_BEYOND, _WITHIN, _SAME = "beyond the spread", "within the spread", "the same"
_NO_SPREAD, _OTHERWISE = "one run each: no spread", "evaluated differently: not comparable"
_ONE_ONLY = "in one table only"
_RULE = "Spread: the larger of the two standard deviations over seeds. Difference: B less A."
_MOST = 40  # protocol values that are listed
_LONGEST = 100  # characters of one of them


def compare_tables(name: str, folders: tuple[Path, Path], conf: Path, reference: Path) -> str:
    """Returns two results of a table side by side, as Markdown; nothing is written or run.

    Args:
        name: of the table in both folders.
        folders: results folders, A and B.
        conf: the folder of the tables' YAMLs.
        reference: the folder of published numbers.

    Raises:
        BadInput: a folder has no such table, or the two are not of one YAML.
    """
    a, b = (read_runs(folder, name, conf, reference) for folder in folders)
    if a.spec.file != b.spec.file:
        raise BadInput(
            f"--compare: {name} in {folders[0]} is of {a.spec.file}.yaml and in {folders[1]} of {b.spec.file}.yaml; "
            "give two results of one table"
        )
    metrics = [
        metric for metric in a.spec.metrics if metric in measured(a.spec, a.records) + measured(b.spec, b.records)
    ]
    grids = {metric: _grid(metric, a, b) for metric in metrics}
    verdicts = Counter(row[-1] for grid in grids.values() for row in grid.rows)
    count = ", ".join(f"{number} {verdict}" for verdict, number in verdicts.most_common())
    lines = [f"# {a.spec.title}: two results", "", f"A: {folders[0]}, B: {folders[1]}", ""]
    lines += ["## What differs in the protocols", "", *_protocols(a, b), ""]
    lines += [f"**Cells: {count or 'none'}.** {_RULE}", ""]
    for metric, grid in grids.items():
        lines += [f"## {metric.title}", "", *markdown(grid), ""]
    return "\n".join(lines)


def _grid(metric: Metric, a: Findings, b: Findings) -> Grid:
    rows, name = [], key_of(metric.name)
    for row, column in _cells(a, b):
        found = [_values(each, row, column, metric) for each in (a, b)]
        if not any(found):
            continue
        ways = [
            {evaluation_key(record, name) for cell, record in each.records if _is_of(each, cell, row, column)}
            for each in (a, b)
        ]
        less, verdict = _difference(*found, alike=ways[0] == ways[1], form=metric.form)
        named = [
            value if column != "dense" or key in ("model", "data") else "-" for key, value in a.spec.keys(row).items()
        ]
        rows.append([*named, column, *(mean_and_spread(each, metric.form) for each in found), less, verdict])
    heads = [*a.spec.rows, "setting", "A", "B", "difference", "verdict"]
    return Grid(heads, rows, frozenset([*range(1 + len(a.spec.rows)), len(heads) - 1]))


def _cells(a: Findings, b: Findings) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every cell of either: the dense model once for each model and data set, then row by row."""
    seen = set()
    rows = dict.fromkeys([*a.spec.row_values, *b.spec.row_values])
    columns = dict.fromkeys([*a.spec.columns, *b.spec.columns])
    for row in rows:
        if a.spec.subject(row) not in seen:
            yield row, "dense"
        seen.add(a.spec.subject(row))
        for column in columns:
            yield row, column
    for row in dict.fromkeys([*a.spec.control_rows, *b.spec.control_rows]) if a.spec.control else ():
        yield row, CONTROL


def _values(findings: Findings, row: tuple[str, ...], column: str, metric: Metric) -> list[float]:
    if column == "dense":
        return dense_values(findings.spec, findings.records, row, metric.name)
    return values(findings.records, row, column, metric.name)


def _is_of(findings: Findings, cell: Any, row: tuple[str, ...], column: str) -> bool:
    if column == "dense":
        return findings.spec.subject(cell.row) == findings.spec.subject(row)
    return bool((cell.row, cell.column) == (row, column))


def _difference(one: list[float], other: list[float], *, alike: bool, form: str) -> tuple[str, str]:
    """The difference as text, and what to think of it."""
    if not one or not other:
        return "-", _ONE_ONLY
    if not alike:
        return "-", _OTHERWISE
    less = statistics.fmean(other) - statistics.fmean(one)
    if less == 0:
        return form.format(0), _SAME
    text = form.replace("{:", "{:+").format(less)
    if len(one) < 2 and len(other) < 2:
        return text, _NO_SPREAD
    return text, _BEYOND if abs(less) > max(spread_of(one), spread_of(other)) else _WITHIN


def _protocols(a: Findings, b: Findings) -> list[str]:
    """What is in the one and not in the other: settings, seeds, and values of the protocols."""
    found = [_facts(each) for each in (a, b)]
    keys = [key for key in dict.fromkeys([*found[0], *found[1]]) if found[0].get(key) != found[1].get(key)]
    rows = [[key, *(_brief(each.get(key, set())) for each in found)] for key in keys[:_MOST]]
    if not rows:
        return ["Nothing."]
    more = [f"And {len(keys) - _MOST} more."] if len(keys) > _MOST else []
    return [*markdown(Grid(["", "A", "B"], rows, frozenset(range(3)))), *more]


def _facts(findings: Findings) -> dict[str, set[str]]:
    """Each value of settings and protocols by its place, in all runs."""
    facts = {f"setting {each.partition('=')[0]}": {each.partition("=")[2]} for each in findings.spec.overrides}
    facts["seeds"] = {str(cell.seed) for cell, _ in findings.records}
    for _, record in findings.records:
        for place, value in _flat(record["protocol"]):
            facts.setdefault(place, set()).add(value)
    return facts


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flat(each, f"{place}.{key}" if place else str(key))
    else:
        yield place, value if isinstance(value, str) else json.dumps(value)


def _brief(found: set[str]) -> str:
    text = "; ".join(sorted(found)) or "-"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 4] + " ..."
