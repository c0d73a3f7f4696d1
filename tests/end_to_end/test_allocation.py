"""Allocations through the command."""

import csv
from pathlib import Path

import pytest

from prune_lab.pruning.masks import count_dropped
from tests.end_to_end.conftest import record


def layers(folder: Path) -> list[dict[str, str]]:
    with (folder / "layers.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_owl_is_obeyed_and_its_layers_can_be_replayed(command, local_overrides, tmp_path):
    common = [*local_overrides, "method=magnitude", "sparsity.level=0.7", "stages=[prune,evaluate]"]
    outcome = command(*common, "allocation=owl", f"hydra.run.dir={tmp_path}/first")
    assert outcome.status == 0, outcome.err
    assert "tiny_opt, Magnitude, 70% unstructured, OWL" in outcome.out
    first, rows = record(tmp_path / "first"), layers(tmp_path / "first")
    sizes = [int(row["rows"]) * int(row["columns"]) for row in rows]
    expected = sum(count_dropped(0.7, entries) for entries in sizes) / sum(sizes)
    assert first["metrics"]["prune/sparsity"] == pytest.approx(expected, abs=1e-12)
    assert 0 < first["metrics"]["prune/allocation_seconds"] <= first["metrics"]["prune/seconds"]
    assert first["protocol"]["prune"]["allocation"] == {
        "name": "OWL", "max_level": None, "multiple": 5.0, "half_width": 0.08,
    }  # fmt: skip
    levels = [float(row["sparsity"]) for row in rows]
    assert max(levels) - min(levels) == pytest.approx(0.16, abs=0.002)

    replay = ["allocation=from_file", f"allocation.path={tmp_path}/first/layers.csv"]
    outcome = command(*common, *replay, f"hydra.run.dir={tmp_path}/second")
    assert outcome.status == 0, outcome.err
    assert layers(tmp_path / "second") != []
    assert [row["sparsity"] for row in layers(tmp_path / "second")] == [row["sparsity"] for row in rows]
    metrics = record(tmp_path / "second")["metrics"]
    assert metrics["evaluate/perplexity"] == first["metrics"]["evaluate/perplexity"]


def test_measured_takes_another_inner_method(command, local_overrides, tmp_path):
    overrides = ["method=magnitude", "allocation=measured", "method@allocation.inner=wanda", "stages=[prune]"]
    outcome = command(*local_overrides, *overrides, f"hydra.run.dir={tmp_path}/run")
    assert outcome.status == 0, outcome.err
    found = record(tmp_path / "run")
    assert found["protocol"]["prune"]["allocation"]["inner"] == {"name": "Wanda"}
    assert found["metrics"]["prune/sparsity"] == 0.5


def test_uniform_says_so_and_takes_no_time(command, local_overrides, tmp_path):
    outcome = command(*local_overrides, "method=magnitude", "stages=[prune]", f"hydra.run.dir={tmp_path}/run")
    assert outcome.status == 0, outcome.err
    found = record(tmp_path / "run")
    assert found["protocol"]["prune"]["allocation"] == {"name": "Uniform"}
    assert "prune/allocation_seconds" not in found["metrics"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["allocation=nope"], ["allocation=nope is not a choice", "owl"]),
        (["allocation=from_file"], ["allocation.path is missing"]),
        (["allocation=from_file", "allocation.path=no.csv"], ["allocation.path=no.csv", "no such file"]),
        (["allocation=owl", "sparsity=nm_2of4"], ["'2:4'", "allocation=uniform"]),
        (["allocation=owl", "allocation.half_width=2"], ["allocation.half_width=2", "[0, 0.5]"]),
        (["allocation=owl", "allocation.lambda=2"], ["lambda"]),
        (["allocation=erk", "method=magnitude", "method.scope=model"], ["one cut", "method.scope=layer"]),
        (["allocation=atp", "allocation.difference=0.6"], ["allocation.difference=0.6", "[0, 0.5)"]),
        (["allocation=measured", "method@allocation.inner=magnitude"], ["allocation.inner=Magnitude", "wanda"]),
        (["allocation=measured", "sparsity.level=0.99"], ["sparsity.level=0.99", "allocation.levels"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_cannot_be_is_refused(command, local_overrides, tmp_path, overrides, words):
    outcome = command(*local_overrides, *overrides, f"hydra.run.dir={tmp_path}/run")
    assert outcome.status == 2, outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    message = outcome.err[outcome.err.index("prune-lab: ") :]
    for word in words:
        assert word in message
    run = tmp_path / "run" / "record.json"
    assert not run.exists() or record(tmp_path / "run")["status"] == "failed"


def test_a_file_for_another_model_is_refused(command, local_overrides, tmp_path):
    (tmp_path / "levels.yaml").write_text("0: 0.5\n1: 0.5\n2: 0.5\n3: 0.5\n")
    overrides = ["allocation=from_file", f"allocation.path={tmp_path}/levels.yaml"]
    outcome = command(*local_overrides, *overrides, f"hydra.run.dir={tmp_path}/run")
    assert outcome.status == 2, outcome.err
    assert "names 3, which tiny_opt does not have" in outcome.err
    assert "dense/perplexity" not in record(tmp_path / "run")["metrics"]  # found before the first stage
