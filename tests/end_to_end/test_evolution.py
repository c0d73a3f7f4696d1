"""The search for levels through the command."""

import csv

import pytest

from prune_lab.utils.extras import is_installed
from tests.end_to_end.conftest import record

SMALL = (
    "method=wanda", "method@allocation.inner=wanda", "stages=[prune]", "sparsity.level=0.7", "allocation=evolution",
    "allocation.generations=3", "allocation.offspring=4", "allocation.tokens=[16,32]",
)  # fmt: skip


def test_its_course_is_in_the_run_folder(command, local_overrides, tmp_path):
    outcome = command(*local_overrides, *SMALL, "seed=7", f"hydra.run.dir={tmp_path}/run")
    assert outcome.status == 0, outcome.err
    rows = list(csv.DictReader((tmp_path / "run" / "allocation.csv").read_text().splitlines()))
    assert [row["generation"] for row in rows] == ["1", "2", "3"]
    assert [row["evaluations"] for row in rows] == ["6", "12", "18"]
    assert (tmp_path / "run" / "allocation.svg").exists() == is_installed("matplotlib")
    assert not (tmp_path / "run" / "allocation").exists()  # what an interrupted search would go on from
    described = record(tmp_path / "run")["protocol"]["prune"]["allocation"]
    assert described["name"] == "Evolution"
    assert described["inner"] == {"name": "Wanda"}
    assert described["initial"] == {"name": "Uniform"}
    assert described["seed"] == 7
    assert record(tmp_path / "run")["metrics"]["prune/sparsity"] == pytest.approx(0.7, abs=1e-3)


def test_another_run_that_takes_the_stage_gets_its_course(command, local_overrides, tmp_path):
    kept = ["stage_cache_min_seconds=0", "skip_finished=true"]
    for name, more in (("first", "[prune]"), ("second", "[prune,evaluate]")):
        overrides = [*local_overrides, *SMALL, *kept, f"stages={more}", f"hydra.run.dir={tmp_path}/{name}"]
        outcome = command(*overrides)
        assert outcome.status == 0, outcome.err
    files = [(tmp_path / name / "allocation.csv").read_bytes() for name in ("first", "second")]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["allocation.tokens=[16,999999]"], ["allocation.tokens=[16, 999999]", "data.samples"]),
        (["allocation.tokens=[16]"], ["allocation.survivors=[1, 1]", "allocation.tokens"]),
        (["allocation.train_tokens=[0,999999]"], ["allocation.train_tokens=[0, 999999]", "allocation.tokens=32"]),
        (["allocation.train_tokens=[16]"], ["allocation.train_tokens=[16]", "allocation.tokens 2"]),
        (["method@allocation.inner=magnitude"], ["allocation.inner=Magnitude", "method@allocation.inner=sparsegpt"]),
        (["sparsity=nm_2of4", "sparsity.level=null"], ["2:4", "allocation=uniform"]),
        (["allocation.max_level=0.5"], ["sparsity.level=0.7", "allocation.max_level=0.5"]),
        (["method=magnitude", "method.scope=model"], ["Magnitude", "allocation=uniform"]),
    ],
)
def test_mistakes_are_told_before_anything_is_written(command, local_overrides, tmp_path, overrides, words):
    outcome = command(*local_overrides, *SMALL, *overrides, f"hydra.run.dir={tmp_path}/run")
    assert outcome.status == 2
    for word in words:
        assert word in outcome.err
    assert not (tmp_path / "run" / "layers.csv").exists()
