"""The committed tables say what the committed runs say."""

import csv
import statistics
from pathlib import Path

import pytest

from prune_lab.__main__ import conf_folder
from prune_lab.report.compare import Findings, compare
from prune_lab.report.grid import latex, markdown
from prune_lab.report.pareto import front_grid
from prune_lab.report.published import read_published
from prune_lab.report.records import Records, measured
from prune_lab.report.recovery import recovery_grid
from prune_lab.report.render import table_grid
from prune_lab.report.spec import Cell, TableSpec, read_table

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLES = sorted(path.stem for path in (ROOT / "results").glob("*.csv"))


def read_lines(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((ROOT / "results" / f"{name}.csv").read_text(encoding="utf-8").splitlines()))


def spec_of(name: str) -> TableSpec:
    """The table of the committed runs: of a miniature, the rows and seeds that were asked for."""
    yaml, lines = name.removesuffix("_reference"), read_lines(name)
    full = read_table(conf_folder() / "table", yaml, [])
    if yaml == name:
        return full
    asked = [f"{key}={','.join(dict.fromkeys(line[key] for line in lines))}" for key in (*full.rows, "seed")]
    return read_table(conf_folder() / "table", yaml, asked)


def read_runs(spec: TableSpec) -> Records:
    records: Records = []
    for line in read_lines(spec.name):
        row = tuple(line[key] for key in spec.rows)
        metrics = {name: float(value) for name, value in line.items() if "/" in name and value}
        # What tells a comparison how its runs were done is not in the file; the numbers are.
        protocol = {"data": {}, "model": {"dtype": ""}}
        cell = Cell(row, line["column"], int(line["seed"]), ())
        records.append((cell, {"metrics": metrics, "protocol": protocol}))
    return records


@pytest.mark.parametrize("name", TABLES)
def test_the_table_is_made_of_its_runs(name):
    spec = spec_of(name)
    records = read_runs(spec)
    assert spec.name == name
    cells = {(cell.row, cell.column, cell.seed) for cell in spec.cells()}
    assert {(cell.row, cell.column, cell.seed) for cell, _ in records} <= cells
    if not spec.reference:  # a paper's table may lack cells that could not run
        assert len(records) == len(cells)
    text = (ROOT / "results" / "tables" / f"{name}.md").read_text(encoding="utf-8")
    tex = (ROOT / "results" / "tables" / f"{name}.tex").read_text(encoding="utf-8")
    grids = [table_grid(spec, metric, records) for metric in measured(spec, records)]
    if spec.recovery:
        grids += [recovery_grid(spec, spec.recovery, name, records) for name in spec.recovery.metrics]
    metrics = {metric.name: metric for metric in spec.metrics}
    grids += [front_grid(spec, front, metrics[front.y], records) for front in spec.fronts]
    assert grids
    for grid in grids:
        assert "\n".join(markdown(grid)) in text
        assert "\n".join(latex(grid, "")[3:-1]) in tex  # without the caption
    assert text.count("\n|---") == tex.count("\\begin{tabular}") >= len(grids)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "results/comparisons").glob("*.csv")))
def test_the_comparison_is_made_of_the_same_runs(name):
    spec = spec_of(name)
    assert spec.reference
    published = read_published(ROOT / "results" / "reference" / spec.reference)
    findings = Findings(spec, read_runs(spec), (), published)
    committed = csv.DictReader((ROOT / "results/comparisons" / f"{name}.csv").read_text(encoding="utf-8").splitlines())
    lines = [line for metric in measured(spec, findings.records) for line in compare(findings, metric)]
    for line, found in zip(lines, committed, strict=True):
        assert [*line.row, line.setting, line.metric.name] == [found[key] for key in (*spec.rows, "setting", "metric")]
        assert int(found["runs"]) == len(line.ours)
        assert (float(found["ours"]) if found["ours"] else None) == (statistics.fmean(line.ours) if line.ours else None)
        assert found["published"] == (str(line.published.value) if line.published else "")
        assert found["difference"] == ("" if line.difference is None else str(line.difference))


@pytest.mark.parametrize("name", [name for name in TABLES if f"<!-- {name}:begin -->" in README])
def test_the_readme_shows_the_same_table(name):
    spec = spec_of(name)
    assert "\n".join(markdown(table_grid(spec, spec.metrics[0], read_runs(spec)))) in README
