"""A speed is asked for, and the latency table that it goes by."""

import json
from pathlib import Path

import pytest

from prune_lab.api import latency
from prune_lab.run.stages import shrink

SMALL = ("sparsity.latency.seqlen=8", "sparsity.latency.repeats=1", "sparsity.latency.steps=3")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("method=ziplm", "sparsity.speedup=1"), "sparsity.speedup=1 is not allowed; allowed: numbers above 1"),
        (("method=ziplm", "sparsity.speedup=2", "sparsity.level=0.5"), "sparsity.level=0.5 both say how much goes"),
        (("method=gum", "sparsity.speedup=2"), "sparsity.speedup=2 is not for GUM, which goes by sparsity.level"),
        (("method=ziplm", "sparsity.speedup=2", "allocation=owl"), "allocation"),
        (("method=flap", "sparsity.speedup=2", "allocation=evolution_units"), "makes one cut for the whole model"),
        (("method=sparsegpt", "+sparsity.speedup=2"), "is not allowed with sparsity.pattern=unstructured"),
        (("method=flap", "sparsity.speedup=2", "sparsity.latency.path=no.json"), "sparsity.latency.path='no.json' is"),
        (("method=flap", "sparsity.speedup=2", "sparsity.latency.phase=all"), "allowed: prefill, decode"),
        (("method=flap", "sparsity.speedup=1000", *SMALL), "sparsity.speedup=1000 is out of reach: the largest is"),
        (("method=ziplm", "sparsity.speedup=2", "finetune=full", "stages=[iterate]"), "no levels in between"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is(command, local_overrides, tmp_path, words, message):
    outcome = command(*local_overrides, "stages=[prune]", *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.status == 2, outcome.err
    assert message in outcome.err


def main(captured, *arguments: str, status: int = 0) -> str:
    try:
        latency.main(arguments)
    except SystemExit as ended:
        assert ended.code == status
    else:
        assert status == 0
    return "".join(captured.readouterr())


@pytest.fixture
def table(local_overrides, capfd, tmp_path) -> Path:
    """The table of the tiny model, with seconds that no clock has a say in: a unit takes one, the rest ten."""
    path, model = tmp_path / "t.json", [each for each in local_overrides if each.startswith(("model", "device"))]
    said = main(capfd, *model, "--seqlen", "8", "--repeats", "1", "--steps", "3", "--output", str(path))
    assert "the whole model" in said and "feed-forward network of" in said and "t.json" in said
    plain = json.loads(path.read_text())
    for phase in plain["phases"].values():
        phase["rest"] = 10.0
        for curve in phase["curves"].values():
            assert len(curve["seconds"]) == len(curve["spread"]) == len(curve["counts"])
            curve["seconds"] = [float(count) for count in curve["counts"]]
    path.write_text(json.dumps(plain))
    return path


def test_a_run_reaches_the_predicted_speed_and_measures_it(command, local_overrides, table, tmp_path):
    folder = tmp_path / "run"
    stages = ("stages=[prune,shrink]", "stages.shrink.repeats=1")
    outcome = command(
        *local_overrides, *SMALL, *stages, f"sparsity.latency.path={table}",
        "method=ziplm", "method.scope=model", "sparsity.speedup=1.5",
        f"hydra.run.dir={folder}",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert "width for 1.5 times the speed" in outcome.out
    assert "times as fast, predicted" in outcome.out and "times as fast, measured" in outcome.out
    record = json.loads((folder / "record.json").read_text())
    speed, metrics = record["protocol"]["prune"]["speed"], record["metrics"]
    assert speed["pruned_seconds"] <= speed["allowed_seconds"] * (1 + 1e-9)
    assert speed["dense_seconds"] == pytest.approx(1.5 * speed["allowed_seconds"])
    assert speed["phase"] == "prefill" and speed["workload"]["seqlen"] == 8 and len(speed["table"]) == 64
    assert metrics["prune/speedup_predicted"] == metrics["shrink/speedup_predicted"] == speed["predicted"] >= 1.5
    assert metrics["shrink/speedup"] > 0 and metrics["shrink/parameters"] < metrics["shrink/parameters_before"]
    assert record["protocol"]["shrink"]["speedup"]["seqlen"] == 8
    assert record["protocol"]["shrink"]["order"] == "one pass of each in turn"
    assert metrics["shrink/speedup_spread"] >= 0
    assert record["config"]["sparsity"]["level"] is None


def test_a_search_divides_the_seconds(command, local_overrides, table, tmp_path):
    settings = ("allocation=evolution_units", "allocation.generations=3", "allocation.offspring=4")
    outcome = command(
        *local_overrides, *SMALL, *settings, "allocation.tokens=[8,16]", "stages=[prune,shrink]",
        "stages.shrink.repeats=1", f"sparsity.latency.path={table}", "method=ziplm", "sparsity.speedup=1.5",
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    speed, pruned = record["protocol"]["prune"]["speed"], record["protocol"]["prune"]
    assert speed["pruned_seconds"] <= speed["allowed_seconds"] * (1 + 1e-9)
    assert pruned["allocation"]["name"] == "Evolution" and record["metrics"]["prune/allocation_seconds"] > 0
    assert (tmp_path / "run" / "allocation.csv").is_file()


def test_without_room_for_both_models_one_is_timed_after_the_other(
    command, local_overrides, table, tmp_path, monkeypatch
):
    monkeypatch.setattr(shrink, "available_memory", lambda: 1000)
    outcome = command(
        *local_overrides, *SMALL, "stages=[prune,shrink]", "stages.shrink.repeats=1", f"sparsity.latency.path={table}",
        "method=wanda_units", "sparsity.speedup=1.5", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["protocol"]["shrink"]["order"] == "all passes before shrinking, then all after"
    metrics = record["metrics"]
    assert metrics["shrink/speedup"] > 0 and metrics["shrink/parameters"] < metrics["shrink/parameters_before"]


def test_a_model_that_the_memory_cannot_hold_is_not_timed(command, local_overrides, tmp_path, monkeypatch):
    monkeypatch.setattr(shrink, "available_memory", lambda: 1000)
    outcome = command(
        *local_overrides, *SMALL, "model.stream=true", "method=wanda_units", f"hydra.run.dir={tmp_path / 'run'}"
    )
    assert outcome.status == 0, outcome.err
    assert "shrink: passes are not timed, as the weights do not fit into memory" in outcome.err
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert "the weights do not fit into memory" in record["protocol"]["shrink"]["not_timed"]
    metrics = record["metrics"]
    assert metrics["shrink/parameters"] < metrics["shrink/parameters_before"]
    assert not any("seconds_" in name or "_ratio" in name for name in metrics if name.startswith("shrink/"))


def test_a_file_that_is_there_is_not_written_over(local_overrides, capfd, table):
    before, model = table.read_bytes(), [each for each in local_overrides if each.startswith(("model", "device"))]
    assert "is there already" in main(capfd, *model, "--output", str(table), status=2)
    assert table.read_bytes() == before


def test_a_table_of_another_workload_is_refused(command, local_overrides, table, tmp_path):
    job = (*local_overrides, "stages=[prune]", "method=wanda_units", "sparsity.speedup=1.1", *SMALL)
    outcome = command(
        *job, f"sparsity.latency.path={table}", "sparsity.latency.batch_size=2", f"hydra.run.dir={tmp_path / 'run'}"
    )
    assert outcome.status == 2 and "batch_size 1 in the table, 2 here" in outcome.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("data=stdlib",), "data=stdlib is not allowed; allowed: model=CHOICE"),
        (("model=reference_llama", "--steps", "0"), "--steps=0 is not allowed"),
        (("model=reference_llama", "--new-tokens", "0"), "--new-tokens=0 is not allowed"),
        (("model=reference_llama", "--output", "t.txt"), "--output=t.txt is not allowed; it is a file JSON"),
        (("model=reference_llama", "--output", "no/t.json"), "in a folder that is there"),
        (("model=nope",), "model=nope is not a choice"),
    ],
)
def test_a_mistake_is_told_before_anything_is_measured(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert message in main(capsys, *words, status=2)
    assert not list(tmp_path.iterdir())
