"""Cells of a table as jobs of a sweep, on any launcher."""

import pytest

from prune_lab.report.metric import Metric
from prune_lab.report.spec import TableSpec
from prune_lab.report.table import main, run_cells


@pytest.fixture
def spec(local_overrides, tmp_path, monkeypatch) -> TableSpec:
    monkeypatch.setenv("PRUNE_LAB_CACHE", str(tmp_path / "cache"))
    return TableSpec(
        name="toy",
        title="Toy",
        overrides=(*local_overrides, "save_model=false"),
        rows={"method": {name: (f"method={name}",) for name in ("magnitude", "wanda")}},
        columns={"50 %": ("sparsity.level=0.5",), "too many": ("sparsity.layers=[0,99]",)},
        seeds=(0,),
        metrics=(Metric("perplexity", "Perplexity", "{:.1f}"),),
    )


def outcome(spec, folder, **how):
    records, failures = run_cells(spec, folder, **how)
    numbers = {(*cell.row, cell.column): record["metrics"]["evaluate/perplexity"] for cell, record in records}
    return numbers, {(*cell.row, cell.column): reason for cell, reason in failures}


@pytest.mark.slow
def test_a_launcher_runs_what_is_missing_and_says_what_failed(spec, tmp_path, monkeypatch, capfd):
    here = outcome(spec, tmp_path / "here")
    monkeypatch.setenv("PRUNE_LAB_CACHE", str(tmp_path / "other"))
    there = outcome(spec, tmp_path / "there", launcher="basic", options=["hydra.sweeper.max_batch_size=3"])
    assert there == here
    assert len(here[0]) == 2 and all("ends beyond the model" in reason for reason in here[1].values())
    sweeps = list((tmp_path / "there").glob("toy-*"))
    assert len(sweeps) == 1 and len(list(sweeps[0].glob("*/record.json"))) == 4
    capfd.readouterr()
    again = outcome(spec, tmp_path / "there")  # finished ones are found in the folder of the sweep
    assert again[0] == there[0] and "sparsity 0.5" not in capfd.readouterr().err


def test_a_cell_that_finished_anywhere_is_taken(spec, tmp_path, capfd):
    first = outcome(spec, tmp_path / "one")
    capfd.readouterr()
    assert outcome(spec, tmp_path / "two") == first
    assert len(list((tmp_path / "two").glob("*/record.json"))) >= 2


def test_settings_of_a_launcher_need_one(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["reference", "hydra.launcher.partition=gpu"])
    assert "give -m slurm" in capsys.readouterr().err


def test_cells_that_cannot_be_launched_are_bad_input(spec, tmp_path, capfd):
    from prune_lab.errors import BadInput

    with pytest.raises(BadInput, match="could not be launched"):
        run_cells(spec, tmp_path, launcher="rocket")
    assert "rocket" in capfd.readouterr().err
