import csv
import math

import pytest

from prune_lab.report import table
from prune_lab.report.compare import compare
from prune_lab.report.render import marks_of, report_text, write_report
from prune_lab.utils.outputs import refuse_foreign
from tests.unit.report.conftest import SPEC

PACKAGES = {"prune_lab": "0", "python": "3", "torch": "2", "transformers": "5", "lm-eval": "0.4"}


def record(perplexity: float, layers: list[int] | None = None) -> dict:
    texts = {
        "calibration": {"source": "allenai/c4", "split": "train", "samples": 128, "seqlen": 2048},
        "evaluation": {"source": "Salesforce/wikitext", "split": "test", "seqlen": 2048},
    }
    return {
        "key": "k",
        "config": {"sparsity": {"layers": layers}},
        "metrics": {"dense/perplexity": 8.5, "evaluate/perplexity": perplexity, "prune/sparsity": 0.5},
        "protocol": {"data": texts, "packages": PACKAGES, "model": {"dtype": "float16"}, "device": "cpu"},
    }


@pytest.fixture
def findings(toy_findings):
    return lambda *overrides: toy_findings(lambda cell: record(11.0 + 2 * cell.seed, [0, 24]), overrides)


def test_a_line_has_both_numbers_their_difference_and_the_protocol(findings):
    protocol = (
        "blocks 0 to 23; calibrated on allenai/c4 train, 128 x 2048; "
        "Salesforce/wikitext test, windows of 2048; float16; seeds 0, 1"
    )
    line = f"| big | wanda | 50 % | 10.00[^1] | 12.00 ± 1.41 | +2.00 (+20.0%) | {protocol} |"
    assert line in report_text(findings()).splitlines()


def test_the_text_of_a_training_is_told_where_it_decided(findings):
    found = findings()
    for _, run in found.records:
        run["protocol"]["training"] = {"source": "stdlib", "split": "train"}
        run["protocol"]["prune"] = {"steps": 50, "batch_size": 4, "seqlen": 256, "schedule": {"name": "Cubic"}}
    text = report_text(found)
    assert "blocks 0 to 23; trained on stdlib train, 50 steps of 4 x 256; Salesforce" in text
    assert "- training: source 'stdlib', split 'train'; 50 steps of 4 samples, schedule cubic" in text
    assert "- calibration:" not in text


def test_the_dense_model_has_a_line_of_its_own(findings):
    lines = [line for line in report_text(findings()).splitlines() if line.startswith("| big | dense")]
    assert lines == [
        "| big | dense | dense | 8.00[^1] | 8.50 | +0.50 (+6.2%) | Salesforce/wikitext test, windows of 2048; float16 |"
    ]


def test_a_cell_that_could_not_run_says_why_and_one_that_lacks_a_seed_says_which(findings):
    text = report_text(findings())
    assert '| big | magnitude | 50 % | - | not run: model.path=x: no "model" \\| and | - | - |' in text
    assert '| 16.50[^2] | 11.00; not run: seed 1: model.path=x: no "model" \\| and | -5.50 (-33.3%) |' in text
    assert "and more" not in text and "and\nmore" not in text


def test_every_source_is_printed_once(findings):
    text = report_text(findings())
    assert text.count("[^1]: a paper; Table 1; README\n") == 1
    assert text.count("[^2]: an issue; Table 2; issue thread\n") == 1


def test_another_model_stands_beside_the_papers_own_without_a_difference(findings):
    text = report_text(findings("model=reference"))
    assert "| reference | wanda | 50 % | 10.00 (big)[^1] | 12.00 ± 1.41 | - |" in text
    assert "a difference between two models says nothing" in text
    assert "a difference between two models" not in report_text(findings())


def test_files_of_a_table_with_published_numbers(findings, tmp_path):
    write_report(findings(), tmp_path / "results")
    assert len((tmp_path / "results/toy.csv").read_text().splitlines()) == 1 + 3
    lines = list(csv.DictReader((tmp_path / "results/comparisons/toy.csv").read_text().splitlines()))
    assert [(line["setting"], line["published"], line["ours"], line["runs"]) for line in lines] == [
        ("dense", "8.0", "8.5", "1"),
        ("50 %", "10.0", "12.0", "2"),
        ("2:4", "16.5", "11.0", "1"),
        ("50 %", "", "", "0"),
        ("2:4", "", "", "0"),
    ]
    assert (lines[1]["difference_percent"], lines[1]["source"]) == ("20.0", "a paper")


def test_the_miniature_leaves_the_table_alone(findings, tmp_path):
    written = findings("model=reference")
    write_report(written, tmp_path / "results")
    marks = marks_of(written.spec)
    refuse_foreign(tmp_path / "results", marks, "")  # which are its own
    paths = [path for path in (tmp_path / "results").rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path / "results").as_posix() for path in paths} <= set(marks)
    assert {path.name for path in (tmp_path / "results").rglob("*.*")} >= {"toy_reference.csv", "toy_reference.md"}
    assert not list((tmp_path / "results").rglob("toy.*"))


def test_without_a_single_run_the_published_numbers_are_printed_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    def execute(cfg, folder, **how):
        raise RuntimeError("the hub is away")

    monkeypatch.setattr("prune_lab.run.runner.execute", execute)
    results = tmp_path / "results"
    with pytest.raises(SystemExit, match="1"):
        table.main(["wanda_llama", "seed=0", "--runs", str(tmp_path / "runs"), "--results", str(results)])
    text = capsys.readouterr().out
    assert "| llama2_7b | wanda | 50 % | 6.42[^1] | not run: the hub is away | - | - |" in text
    assert not results.exists()


def test_the_dense_model_of_a_metric_with_a_slash_was_run(toy_findings, tmp_path):
    (tmp_path / "toy.yaml").write_text(SPEC.replace("metrics: {perplexity:", "metrics: {evaluate/c4/perplexity:"))

    def measured(cell):
        metrics = {"dense/c4/perplexity": 12.5, "evaluate/c4/perplexity": 15.0}
        return record(0.0) | {"metrics": metrics}

    found = toy_findings(measured)
    (dense, *_) = [line for line in compare(found, found.spec.metrics[0]) if line.setting == "dense"]
    assert (dense.ours, dense.not_run) == ((12.5,), "") and dense.protocol != "-"


def test_a_seed_that_has_broken_the_model_leaves_a_table(toy_findings, tmp_path):
    """A loss of 700 nats is a perplexity of infinity, whose spread nothing is."""

    def measured(cell):
        metrics = {"dense/perplexity": 8.5, "evaluate/perplexity": math.inf if cell.seed else 10.0}
        return record(0.0) | {"metrics": metrics}

    text = write_report(toy_findings(measured), tmp_path / "results")
    assert "inf ± nan" in text
