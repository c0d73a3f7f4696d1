"""What tables mark: the best cells, and speeds that are not told from the dense model's."""

from dataclasses import replace

import pytest

from prune_lab.report.best import best_cells, is_noise
from prune_lab.report.compare import Findings
from prune_lab.report.read_spec import read_table
from prune_lab.report.records import dense_values, described_by
from prune_lab.report.render import report_latex, report_text

YAML = """
title: Toy
overrides: [data=stdlib]
rows:
  model: [a, b]
  method: [wanda, ria, magnitude]
  layers: {all: [], half: ["sparsity.layers=[0,6]"]}
columns: {"50 %": [sparsity.level=0.5]}
seeds: [0, 1]
metrics:
  perplexity: {form: "{:.1f}", title: Perplexity}
  accuracy: {form: "{:.2f}", title: Accuracy, error: accuracy_stderr}
  prefill_seconds: {form: "{:.1f}", title: Seconds}
"""
METHODS = ("wanda", "ria", "magnitude")
PROTOCOL = {"data": {"evaluation": {"windows": 3}}, "packages": {}, "model": {"dtype": "float32"}, "device": "cpu"}


@pytest.fixture
def made(tmp_path):
    """Makes the described table and its records: ``perplexity[method]`` are the values of its seeds."""
    (tmp_path / "toy.yaml").write_text(YAML)

    def make(name, values, dense=(10.0, 10.0), **more):
        spec = read_table(tmp_path, "toy", [])
        records = []
        for cell in spec.cells():
            found = values[cell.row[1]]
            if cell.seed < len(found):
                worse = {"all": 0.0, "half": -5.0}[cell.row[2]] + {"a": 0.0, "b": 100.0}[cell.row[0]]
                metrics = {f"dense/{name}": dense[cell.seed], f"evaluate/{name}": found[cell.seed] + worse, **more}
                records.append((cell, {"key": "k", "metrics": metrics, "protocol": PROTOCOL}))
        return described_by(spec, records), records

    return make


def marked(spec, records, place=0):
    best = best_cells(spec, spec.metrics[place], records)
    return {(model, method) for (model, method, layers), _ in best if layers == "all"}


def test_the_best_of_each_model_is_marked_with_what_is_not_told_from_it(made):
    spec, records = made("perplexity", {"wanda": [20.0, 22.0], "ria": [22.0, 22.4], "magnitude": [24.0, 24.0]})
    assert marked(spec, records) == {(model, method) for model in "ab" for method in ("wanda", "ria")}
    text = report_text(Findings(spec, records))
    assert (
        "| a | wanda | all | 10.0 | **21.0 ± 1.4** |" in text and "| a | magnitude | all | 10.0 | 24.0 ± 0.0 |" in text
    )
    assert "- bold: the best of a column" in text
    latex = report_latex(Findings(spec, records))
    assert r"\textbf{21.0 $\pm$ 1.4}" in latex and "Bold: the best of a column" in latex


def test_rows_that_prune_less_are_no_rivals(made):
    spec, records = made("perplexity", {"wanda": [20.0, 20.0], "ria": [22.0, 22.0], "magnitude": [24.0, 24.0]})
    best = {row[1:] for row, _ in best_cells(spec, spec.metrics[0], records)}
    assert best == {("wanda", "all"), ("wanda", "half")}


@pytest.mark.parametrize(("group", "best"), [("width", {"wanda"}), ("nm_2of4", set())])
def test_units_that_others_have_by_default_are_no_other_amount(made, group, best):
    spec, records = made("perplexity", {"wanda": [20.0, 20.0], "ria": [22.0, 22.0], "magnitude": [24.0, 24.0]})
    methods = {**spec.rows["method"], "ria": (f"sparsity={group}",)}
    asked = replace(spec, rows={**spec.rows, "method": methods})
    assert {row[1] for row, _ in best_cells(asked, asked.metrics[0], records)} == best


def test_higher_is_better_where_the_metric_says_so_and_one_run_has_its_standard_error(made):
    values = {"wanda": [0.60], "ria": [0.58], "magnitude": [0.50]}
    assert marked(*made("accuracy", values), place=1) == {("a", "wanda"), ("b", "wanda")}
    more = {"evaluate/accuracy_stderr": 0.03}
    assert marked(*made("accuracy", values, **more), place=1) == {(m, each) for m in "ab" for each in ("wanda", "ria")}


def test_nothing_is_marked_where_all_are_the_same(made):
    assert marked(*made("perplexity", {each: [20.0, 20.0] for each in METHODS})) == set()


def test_a_speed_within_the_spread_is_noise_and_never_the_best(made):
    values = {"wanda": [9.0, 11.5], "ria": [5.0, 5.2], "magnitude": [9.9, 9.9]}
    spec, records = made("prefill_seconds", values, dense=(10.0, 10.6))
    seconds, row = spec.metrics[2], ("a", "wanda", "all")
    assert is_noise(spec, seconds, records, row, "50 %")
    assert not is_noise(spec, seconds, records, ("a", "ria", "all"), "50 %")
    assert marked(spec, records, place=2) == {("a", "ria"), ("b", "ria")}
    text = report_text(Findings(spec, records))
    assert "10.3 ± 0.3 | 10.2 ± 1.8 (noise) |" in text and "- noise: no further" in text


def test_the_dense_model_is_the_mean_over_runs_that_were_evaluated_alike(made):
    spec, records = made("prefill_seconds", {each: [5.0, 5.0] for each in METHODS}, dense=(10.0, 12.0))
    row = ("a", "wanda", "all")
    assert dense_values(spec, records, row, "prefill_seconds") == [10.0, 12.0] * 6
    elsewhere = PROTOCOL | {"device": "cuda"}
    some = [(cell, run | {"protocol": elsewhere} if cell.row[1] == "ria" else run) for cell, run in records]
    assert dense_values(spec, some, row, "prefill_seconds") == [10.0, 12.0] * 4
    same = [(cell, run | {"metrics": {"dense/perplexity": 3.0}}) for cell, run in records]
    assert dense_values(spec, same, row, "perplexity") == [3.0]
