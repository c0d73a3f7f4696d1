"""The committed tables say what the committed runs say."""

import csv
from pathlib import Path

import pytest

from prune_lab.__main__ import conf_folder
from prune_lab.report.records import Records
from prune_lab.report.render import table_lines
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
        records.append((Cell(row, line["column"], int(line["seed"]), ()), {"metrics": metrics}))
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
    for metric in spec.metrics:
        assert "\n".join(table_lines(spec, metric, records)) in text


@pytest.mark.parametrize("name", [name for name in TABLES if f"<!-- {name}:begin -->" in README])
def test_the_readme_shows_the_same_table(name):
    spec = spec_of(name)
    assert "\n".join(table_lines(spec, spec.metrics[0], read_runs(spec))) in README
