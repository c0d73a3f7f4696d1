"""The committed tables are those of the committed runs, to the last byte."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from prune_lab.report.archive import read_runs
from prune_lab.report.compare import Findings
from prune_lab.report.grid import markdown
from prune_lab.report.render import table_grid, write_report
from prune_lab.report.table import tables_folder

ROOT = Path(__file__).parents[3]
UNFINISHED = {"smollm2_recovery", "efficiency_study"}  # tables that say themselves how many of their runs are missing
RESULTS = ROOT / "results"
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/small_models.md")}
TABLES = sorted(path.stem for path in RESULTS.glob("*.csv"))
SHOWN = [(name, page) for page, text in PAGES.items() for name in re.findall("<!-- (.*):begin -->", text)]


def findings_of(name: str) -> Findings:
    return read_runs(RESULTS, name, tables_folder(), RESULTS / "reference")


@pytest.mark.parametrize("name", TABLES)
def test_the_files_of_a_table_are_made_of_its_runs(name, tmp_path):
    findings = findings_of(name)
    write_report(findings, tmp_path)
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(written) >= 4
    for path in written:
        if path.suffix == ".svg" and f"Matplotlib v{version('matplotlib')}," not in (RESULTS / path).read_text():
            continue  # each draws a little differently
        assert (tmp_path / path).read_bytes() == (RESULTS / path).read_bytes(), path
    cells = [(cell.row, cell.column, cell.seed) for cell, _ in findings.records]
    assert len(set(cells)) == len(cells)
    if not findings.spec.reference:  # a paper's table may lack cells that could not run
        missing = [(cell.row, cell.column, cell.seed) for cell, _ in findings.failures]
        assert sorted(cells + missing) == sorted((cell.row, cell.column, cell.seed) for cell in findings.spec.cells())
        assert bool(missing) == (name in UNFINISHED)


def test_no_file_is_of_a_table_that_is_not_there():
    folders = {"tables": "", "protocols": "", "comparisons": "", "plots": r"_\w+"}
    for folder, more in folders.items():
        for path in (RESULTS / folder).iterdir():
            assert any(re.fullmatch(name + more, path.stem) for name in TABLES), path


@pytest.mark.parametrize(("name", "page"), SHOWN)
def test_a_page_shows_the_same_table(name, page):
    findings = findings_of(name)
    spec = findings.spec
    assert "\n".join(markdown(table_grid(spec, spec.metrics[0], findings.records))) in PAGES[page]
