"""What is kept of a table's runs is all that the table needs."""

import csv
import json
import sys
from pathlib import Path

import pytest

from prune_lab.errors import BadInput
from prune_lab.report import folders, table
from prune_lab.report.archive import kept_runs, read_runs, write_runs
from prune_lab.report.compare import Findings
from prune_lab.report.read_spec import read_table
from prune_lab.report.render import report_latex, report_text


def record(seed: int, layers: list[int] | None) -> dict:
    calibration = {"source": "allenai/c4", "split": "train", "samples": 128, "seqlen": 2048, "seed": seed}
    return {
        "key": f"key {seed}",
        "config": {"sparsity": {"layers": layers}, "method": {"name": "not kept"}},
        "metrics": {"dense/perplexity": 8.5, "evaluate/perplexity": 10 / 3 + seed, "prune/seconds": 1.5},
        "protocol": {
            "data": {"calibration": calibration, "evaluation": {"source": "wikitext", "seqlen": 2048}},
            "packages": {"prune_lab": "0", "python": "3", "torch": "2", "transformers": "5", "lm-eval": "0.4"},
            "model": {"dtype": "float16", "name": "big"},
            "device": "cpu",
            "prune": {"allocation": {"name": "Uniform"}, "calibration": calibration},
            "finetune": {"steps": 5, "batch_size": 2, "held_out": {"0": 3.5}},
            "dense": {"windows": 3},
        },
    }


@pytest.fixture
def findings(toy_findings) -> Findings:
    return toy_findings(lambda cell: record(cell.seed, [0, 24] if cell.column == "2:4" else None), ["data.samples=128"])


def read(tmp_path: Path) -> Findings:
    return read_runs(tmp_path / "results", "toy", tmp_path, tmp_path)


def test_the_table_is_the_same_after_reading(findings, tmp_path):
    write_runs(findings, tmp_path / "results")
    again = read(tmp_path)
    assert again.spec == findings.spec and again.failures == findings.failures
    assert [(cell, run["key"]) for cell, run in again.records] == [(cell, run["key"]) for cell, run in findings.records]
    assert report_text(again) == report_text(findings)
    assert report_latex(again) == report_latex(findings)
    assert "blocks 0 to 23" in report_text(again)
    write_runs(again, tmp_path / "other")
    for path in ("toy.csv", "protocols/toy.json"):
        assert (tmp_path / "other" / path).read_bytes() == (tmp_path / "results" / path).read_bytes()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("toy.csv", "model\nbig\n"),
        ("toy.csv", "model,method,column,seed,evaluate/perplexity,protocol,key\nbig,wanda,50 %,0,many,x,k\n"),
        ("protocols/toy.json", "{"),
        ("protocols/toy.json", "[]"),
        ("protocols/toy.json", "[" * 100_000),
        ("protocols/toy.json", '{"table": "toy", "asked": [], "overrides": 3, "protocols": {}}'),
    ],
)
def test_damaged_files_of_a_table_are_named(findings, tmp_path, file, content):
    write_runs(findings, tmp_path / "results")
    (tmp_path / "results" / file).write_text(content)
    with pytest.raises(BadInput, match=r"toy\.csv and protocols/toy\.json in .* are not as a table leaves them"):
        read(tmp_path)


def test_runs_share_protocols_that_say_how_and_not_what_came_out(findings, tmp_path):
    write_runs(findings, tmp_path)
    about = json.loads((tmp_path / "protocols/toy.json").read_text())
    lines = list(csv.DictReader((tmp_path / "toy.csv").read_text().splitlines()))
    assert len(lines) == 3 and {line["protocol"] for line in lines} == set(about["protocols"])
    kept = about["protocols"][lines[0]["protocol"]]["protocol"]
    assert kept["data"]["calibration"]["seed"] == 0
    assert kept["prune"] == {"allocation": {"name": "Uniform"}} and kept["finetune"] == {"steps": 5, "batch_size": 2}
    assert "dense" not in kept and "not kept" not in json.dumps(about)


def test_files_that_are_missing_or_of_different_runs_are_bad_input(findings, tmp_path):
    with pytest.raises(BadInput, match=r"toy\.json cannot be read; tables with runs in .*: none"):
        read(tmp_path)
    write_runs(findings, tmp_path / "results")
    path = tmp_path / "results/toy.csv"
    whole = path.read_text()
    path.write_text(whole.replace("wanda", "ria"))
    with pytest.raises(BadInput, match=r"has a run of \(\('big', 'ria'\), '50 %', 0\), which results/specs/toy.yaml"):
        read(tmp_path)
    lines = list(csv.DictReader(whole.splitlines()))
    path.write_text(whole.replace(lines[0]["protocol"], "01234567"))
    with pytest.raises(BadInput, match=r"has no 01234567, which toy\.csv names"):
        read(tmp_path)


def test_the_command_tabulates_again_without_a_run(findings, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folders, "conf_folder", lambda: tmp_path / "conf")
    (tmp_path / "results").mkdir()
    (tmp_path / "results/specs").symlink_to(tmp_path)
    (tmp_path / "results/reference").symlink_to(tmp_path)
    monkeypatch.setattr(table, "run_cells", lambda *_, **__: pytest.fail("ran something"))
    write_runs(findings, tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["prune-lab-table"])
    with pytest.raises(SystemExit) as ended:
        table.main(["toy", "--redraw", "--results", str(tmp_path / "results")])
    assert ended.value.code == 1  # as it was: some cells could not run
    shown = capsys.readouterr().out
    assert shown == report_text(findings) == (tmp_path / "results/tables/toy.md").read_text()
    with pytest.raises(SystemExit) as ended:
        table.main(["toy", "model=big", "--redraw", "--results", str(tmp_path / "results")])
    assert ended.value.code == 2 and "--redraw runs nothing" in capsys.readouterr().err


def kept(tmp_path: Path, *overrides: str) -> dict:
    return kept_runs(read_table(tmp_path, "toy", overrides), tmp_path / "results", tmp_path, tmp_path)


def test_runs_made_elsewhere_are_kept_where_the_settings_are_the_same(findings, tmp_path):
    assert kept(tmp_path, "data.samples=128") == {}
    write_runs(findings, tmp_path / "results")
    found = kept(tmp_path, "data.samples=128", "device=cuda", "data.root=elsewhere")
    assert [(cell.row, cell.column, cell.seed, run["key"]) for cell, run in found.items()] == [
        (cell.row, cell.column, cell.seed, run["key"]) for cell, run in findings.records
    ]
    assert all("device=cuda" in cell.overrides for cell in found)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.samples=64"], r"with other settings .*\(data.samples=128, data.samples=64\)"),
        (["data.samples=128", "seed=0"], r"has [0-9]+ runs that this command does not ask for, such as .* seed 1"),
    ],
)
def test_runs_that_do_not_belong_to_the_command_are_refused(findings, tmp_path, overrides, message):
    write_runs(findings, tmp_path / "results")
    with pytest.raises(BadInput, match=message):
        kept(tmp_path, *overrides)


def test_runs_with_another_value_for_their_model_are_refused(tmp_path, toy_findings):
    """A name that rows fill in by model stands in none of the overrides."""
    made = toy_findings(lambda cell: record(cell.seed, None))
    (tmp_path / "toy.yaml").write_text((tmp_path / "toy.yaml").read_text() + "per_model: {half: {big: '1'}}\n")
    write_runs(made, tmp_path / "results")
    assert kept(tmp_path)
    with pytest.raises(BadInput, match=r"with other settings .*\(half=1 of big, half=2 of big\)"):
        kept(tmp_path, "half=2")
