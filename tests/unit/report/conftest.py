"""A toy table: two methods, two settings, two seeds, of which some runs are missing."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from prune_lab.report.compare import Findings
from prune_lab.report.published import read_published
from prune_lab.report.read_spec import read_table
from prune_lab.report.records import described_by
from prune_lab.report.spec import Cell

SPEC = """
title: Toy
reference: toy.csv
overrides: [data=c4_wikitext2]
miniature: [data=stdlib]
rows: {model: [big], method: [wanda, magnitude]}
columns: {"50 %": [sparsity.level=0.5], "2:4": [sparsity=nm_2of4]}
seeds: [0, 1]
metrics: {perplexity: {form: "{:.2f}", title: Perplexity, scale: log}}
"""
PUBLISHED = """model,method,setting,dataset,metric,value,table,source,evidence
big,dense,dense,wikitext2,perplexity,8.0,Table 1,a paper,README
big,wanda,50 %,wikitext2,perplexity,10.0,Table 1,a paper,README
big,wanda,2:4,wikitext2,perplexity,16.5,Table 2,an issue,issue thread
"""


@pytest.fixture
def toy_findings(tmp_path: Path) -> Callable[[Callable[[Cell], dict[str, Any]], Sequence[str]], Findings]:
    """Makes findings from the record of each cell: magnitude did not run, nor did Wanda at 2:4 with seed 1."""
    (tmp_path / "toy.yaml").write_text(SPEC)
    (tmp_path / "toy.csv").write_text(PUBLISHED)

    def make(record: Callable[[Cell], dict[str, Any]], overrides: Sequence[str] = ()) -> Findings:
        spec = read_table(tmp_path, "toy", overrides)
        cells = list(spec.cells())
        missing = [cell for cell in cells if cell.row[1] == "magnitude" or (cell.column, cell.seed) == ("2:4", 1)]
        records = [(cell, record(cell)) for cell in cells if cell not in missing]
        failures = [(cell, 'model.path=x: no "model" | and\nmore') for cell in missing]
        return Findings(described_by(spec, records), records, failures, read_published(tmp_path / "toy.csv"))

    return make


@pytest.fixture
def write(tmp_path):
    def write_run(name, record, **files):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        text = record if isinstance(record, str) else json.dumps(record)
        (folder / "record.json").write_text(text, encoding="utf-8")
        for file, content in files.items():
            (folder / f"{file}.csv").write_text(content)
        return folder

    return write_run


def finished(**metrics):
    return {"status": "finished", "config": {}, "protocol": {}, "metrics": metrics}
