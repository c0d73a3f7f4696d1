"""The committed tables say what the committed runs say."""

import csv
from pathlib import Path

import pytest

from prune_lab.__main__ import conf_folder
from prune_lab.report.render import Records, table_lines
from prune_lab.report.spec import Cell, TableSpec, read_table

ROOT = Path(__file__).parents[3]
TABLES = sorted(path.stem for path in (ROOT / "results").glob("*.csv"))


def read_runs(spec: TableSpec) -> Records:
    records: Records = []
    for line in csv.DictReader((ROOT / "results" / f"{spec.name}.csv").read_text().splitlines()):
        row = tuple(line[key] for key in spec.rows)
        metrics = {name: float(value) for name, value in line.items() if "/" in name and value}
        records.append((Cell(row, line["column"], int(line["seed"]), ()), {"metrics": metrics}))
    return records


@pytest.mark.parametrize("name", TABLES)
def test_the_table_is_made_of_its_runs(name):
    spec = read_table(conf_folder() / "table", name, [])
    records = read_runs(spec)
    assert len(records) == len(list(spec.cells()))
    text = (ROOT / "results" / "tables" / f"{name}.md").read_text()
    for metric in spec.metrics:
        assert "\n".join(table_lines(spec, metric, records)) in text


@pytest.mark.parametrize("name", TABLES)
def test_the_readme_shows_the_same_table(name):
    spec = read_table(conf_folder() / "table", name, [])
    text = (ROOT / "README.md").read_text()
    assert "\n".join(table_lines(spec, spec.metrics[0], read_runs(spec))) in text
