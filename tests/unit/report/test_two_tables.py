"""Two results of one table, cell by cell."""

import pytest

from prune_lab.errors import BadInput
from prune_lab.report import table
from prune_lab.report.archive import write_runs
from prune_lab.report.compare import Findings
from prune_lab.report.read_spec import read_table
from prune_lab.report.records import described_by
from prune_lab.report.two_tables import compare_tables

YAML = """
title: Toy
overrides: [data=stdlib]
rows: {model: [a], method: [wanda, ria]}
columns: {"50 %": [sparsity.level=0.5], "2:4": [sparsity=nm_2of4]}
seeds: [0, 1]
metrics: {perplexity: {form: "{:.1f}", title: Perplexity}}
"""


@pytest.fixture
def kept(tmp_path):
    """Keeps a table in a folder, with what is added to the values of a cell; None leaves a run out."""
    (tmp_path / "toy.yaml").write_text(YAML)

    def keep(folder, more, asked=(), **protocol):
        spec = read_table(tmp_path, "toy", list(asked))
        records = []
        for cell in spec.cells():
            added = more(cell)
            if added is not None:
                metrics = {"dense/perplexity": 10.0, "evaluate/perplexity": 20.0 + cell.seed + added}
                told = {
                    "data": {"evaluation": {"windows": 3}},
                    "model": {"dtype": "float32"},
                    "device": "cpu",
                } | protocol
                records.append((cell, {"key": "k", "metrics": metrics, "protocol": told}))
        write_runs(Findings(described_by(spec, records), records), tmp_path / folder)

    return keep


def compared(tmp_path):
    return compare_tables("toy", (tmp_path / "a", tmp_path / "b"), tmp_path, tmp_path)


def test_differences_are_told_from_the_spread(kept, tmp_path):
    changes = {("wanda", "50 %"): 3.0, ("wanda", "2:4"): 0.5, ("ria", "50 %"): None, ("ria", "2:4"): 0.0}
    kept("a", lambda cell: 0.0)
    kept("b", lambda cell: changes[cell.row[1], cell.column])
    text = compared(tmp_path)
    assert "| a | - | dense | 10.0 | 10.0 | 0.0 | the same |" in text
    assert "| a | wanda | 50 % | 20.5 ± 0.7 | 23.5 ± 0.7 | +3.0 | beyond the spread |" in text
    assert "| a | wanda | 2:4 | 20.5 ± 0.7 | 21.0 ± 0.7 | +0.5 | within the spread |" in text
    assert "| a | ria | 50 % | 20.5 ± 0.7 | - | - | in one table only |" in text
    assert "| a | ria | 2:4 | 20.5 ± 0.7 | 20.5 ± 0.7 | 0.0 | the same |" in text
    assert "**Cells: 2 the same, 1 beyond the spread, 1 within the spread, 1 in one table only.**" in text


def test_single_runs_have_no_spread_to_judge_by(kept, tmp_path):
    kept("a", lambda cell: 0.0, asked=["seed=0"])
    kept("b", lambda cell: -3.0, asked=["seed=0"])
    assert "| 20.0 | 17.0 | -3.0 | one run each: no spread |" in compared(tmp_path)


def test_protocols_that_differ_come_first_and_their_cells_are_not_compared(kept, tmp_path):
    kept("a", lambda cell: 0.0, asked=["data.samples=4"])
    kept("b", lambda cell: 1.0, asked=["data.samples=8"], data={"evaluation": {"windows": 9}})
    text = compared(tmp_path)
    assert "| setting data.samples | 4 | 8 |" in text and "| data.evaluation.windows | 3 | 9 |" in text
    assert text.index("data.evaluation.windows") < text.index("## Perplexity")
    assert "| a | wanda | 50 % | 20.5 ± 0.7 | 21.5 ± 0.7 | - | evaluated differently: not comparable |" in text


def test_the_same_table_says_so(kept, tmp_path):
    for folder in "ab":
        kept(folder, lambda cell: 0.0)
    text = compared(tmp_path)
    assert "Nothing." in text and "**Cells: 5 the same.**" in text


def test_a_folder_without_the_table_is_named(kept, tmp_path):
    kept("a", lambda cell: 0.0)
    with pytest.raises(BadInput, match=r"b/protocols/toy\.json cannot be read; tables with runs in .*b: none"):
        compared(tmp_path)


@pytest.mark.parametrize("more", [["model=x"], ["--redraw"], ["--keep"], ["-m", "slurm"], ["--no-run"]])
def test_the_command_takes_nothing_beside_two_folders(more, capsys):
    with pytest.raises(SystemExit) as ended:
        table.main(["reference", *more, "--compare", "results", "results"])
    assert ended.value.code == 2
    assert "--compare reads two results folders and writes nothing, so it does not take" in capsys.readouterr().err


def test_the_command_prints_the_comparison(capsys):
    results = str(table.tables_folder().parent)
    table.main(["reference", "--compare", results, results])
    assert "# One-shot pruning of the shipped models: two results" in capsys.readouterr().out
