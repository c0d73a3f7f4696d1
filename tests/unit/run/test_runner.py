import json
import logging
import re
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from prune_lab.errors import BadInput, RunFailed
from prune_lab.run.runner import execute
from prune_lab.run.stages.prune import Prune
from prune_lab.run.tracking.jsonl import JsonlTracker

VARYING = ("seconds", "peak_memory_mb")


@pytest.fixture
def spied(monkeypatch):
    """What the tracker was told, and whether there was a record at that time."""
    told = []

    def spy(name):
        original = getattr(JsonlTracker, name)

        def wrapper(self, *args, **kwargs):
            told.append((name, args, kwargs, (folder_of(self, args) / "record.json").exists()))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(JsonlTracker, name, wrapper)

    def folder_of(tracker, args) -> Path:
        return args[0].folder if tracker._path is None else tracker._path.parent

    for name in ("start", "log", "table", "finish"):
        spy(name)
    return told


def test_a_stage_is_told_in_one_line_by_what_says_most(configured, local_overrides, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    changed = ("evaluate=all", "evaluate.zero_shot=null", "method=wanda", "save_model=false")
    execute(configured(*local_overrides, *changed), tmp_path / "run")
    lines = {text.partition(": ")[0]: text for text in caplog.messages}
    for stage in ("dense", "evaluate"):
        assert re.fullmatch(rf"{stage}: perplexity \d+\.\d{{3}}, seconds \d+\.\d", lines[stage])
    assert lines["prune"].startswith("prune: sparsity 50.00%, seconds ")


def read_record(folder: Path) -> dict:
    return json.loads((folder / "record.json").read_text())


def damage(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.decoder.layers.0.fc1.weight"][0, 0] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def test_the_record_is_written_when_all_else_is_done(configured, local_overrides, tmp_path, spied):
    folder = tmp_path / "run"
    execute(configured(*local_overrides, "method=wanda"), folder)
    assert [name for name, *_ in spied] == ["start", "log", "log", "table", "log", "log", "finish"]
    assert not any(existed for *_, existed in spied)
    assert spied[-1][2] == {"failed": False}
    record = read_record(folder)
    assert record["status"] == "finished"
    assert spied[-1][1][0] == record["metrics"]
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert written["record.json"] == max(written.values())


def test_the_record_says_how_the_numbers_came_about(configured, local_overrides, tmp_path):
    folder = tmp_path / "run"
    record = execute(configured(*local_overrides, "method=wanda", "sparsity.layers=[0,2]", "seed=3"), folder)
    assert record == read_record(folder)
    assert record["config"]["method"] == {"_target_": "prune_lab.pruning.methods.wanda.Wanda"}
    assert OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")) == record["config"]
    assert {
        "dense/perplexity",
        "evaluate/perplexity",
        "prune/sparsity",
        "prune/seconds",
        "prune/processor_seconds",
        "prune/peak_memory_mb",
    } <= set(record["metrics"])
    assert record["metrics"]["prune/sparsity"] == 0.5
    protocol = record["protocol"]
    assert protocol["prune"]["layers"] == [0, 2]
    assert protocol["model"]["dtype"] == "float32"
    assert protocol["evaluate"]["windows"] == 6
    assert protocol["data"]["calibration"]["sha256"] != protocol["data"]["evaluation"]["sha256"]
    assert protocol["seed"] == 3
    assert protocol["packages"]["torch"] == torch.__version__
    assert len(record["key"]) == 64


def test_a_stage_s_time_is_told_by_the_clock_and_by_the_processor(configured, local_overrides, tmp_path, monkeypatch):
    clocks = SimpleNamespace(perf_counter=count(0, 10).__next__, process_time=count(0, 3).__next__)
    monkeypatch.setattr("prune_lab.run.runner.time", clocks)
    metrics = execute(configured(*local_overrides, "method=magnitude"), tmp_path / "run")["metrics"]
    for stage in ("dense", "prune", "evaluate", "save"):
        assert (metrics[f"{stage}/seconds"], metrics[f"{stage}/processor_seconds"]) == (10, 3)


def test_lines_of_metrics_appear_stage_by_stage(configured, local_overrides, tmp_path):
    execute(configured(*local_overrides, "method=magnitude"), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["dense", "prune", "evaluate", "save"]
    assert lines[1]["prune/sparsity"] == 0.5


def test_the_protocol_says_how_many_weights_were_refined(configured, local_overrides, tmp_path):
    """Spoken of where there is something to refine only."""
    for name, method in (("one", "wanda"), ("two", "least_squares")):
        execute(configured(*local_overrides, f"method={method}"), tmp_path / name)
    first, second = (
        json.loads((tmp_path / name / "record.json").read_text())["protocol"]["prune"] for name in ("one", "two")
    )
    assert "refined" not in first
    assert sum(second["refined"].values()) == 18
    assert set(second["refined"]) <= {"0", "1"}


def test_layers_csv_has_a_line_for_every_weight(configured, local_overrides, tmp_path):
    execute(configured(*local_overrides, "method=wanda"), tmp_path / "run")
    header, *rows = [line.split(",") for line in (tmp_path / "run" / "layers.csv").read_text().splitlines()]
    assert header == [
        "name", "rows", "columns", "sparsity", "relative_output_error", "block_relative_output_error", "seconds",
    ]  # fmt: skip
    assert len(rows) == 18
    assert rows[4][:4] == ["model.decoder.layers.0.fc1", "64", "32", "0.5"]
    masks = load_file(tmp_path / "run" / "masks.safetensors")
    assert [row[0] for row in rows] == sorted(masks, key=[row[0] for row in rows].index)


@pytest.mark.parametrize("method", ["sparsegpt", "random"])
def test_the_same_settings_give_the_same_bits(configured, local_overrides, tmp_path, method):
    runs = [tmp_path / "one", tmp_path / "two"]
    records = [execute(configured(*local_overrides, f"method={method}"), run) for run in runs]
    metrics, again = (
        {name: value for name, value in record["metrics"].items() if not name.endswith(VARYING)} for record in records
    )
    assert metrics == again
    assert records[0]["key"] == records[1]["key"]
    assert records[0]["protocol"] == records[1]["protocol"]
    for file in ("masks.safetensors", "model/model.safetensors", "config.yaml"):
        assert (runs[0] / file).read_bytes() == (runs[1] / file).read_bytes(), file


def test_another_seed_gives_another_choice(configured, local_overrides, tmp_path):
    one, two = (
        execute(configured(*local_overrides, "method=random", f"seed={seed}"), tmp_path / str(seed)) for seed in (0, 1)
    )
    assert one["metrics"]["evaluate/perplexity"] != two["metrics"]["evaluate/perplexity"]
    assert one["metrics"]["dense/perplexity"] == two["metrics"]["dense/perplexity"]


def test_a_run_that_is_refused_leaves_a_failed_record_and_no_tracker(configured, local_overrides, tmp_path, spied):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "record.json").write_text('{"status": "finished"}')  # of an earlier run
    config = configured(*local_overrides, "sparsity=nm_2of4", "sparsity.pattern='2:3'", "stages=[prune,evaluate]")
    with pytest.raises(BadInput, match=r"'2:3' does not divide"):
        execute(config, folder)
    record = read_record(folder)
    assert record["status"] == "failed"
    assert "'2:3' does not divide" in record["error"]
    assert spied == []


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB."
            ),
            "CUDA out of memory. Tried to allocate 2.00 GiB",
        ),
        (None, "can't allocate memory: you tried to allocate 4000000000000000 bytes"),
        (MemoryError(), "the system gives no more"),
    ],
    ids=["gpu", "torch on the host", "python"],
)
def test_a_lack_of_memory_is_told_with_what_helps(configured, local_overrides, tmp_path, monkeypatch, error, told):
    def prune(*args):
        if error is not None:
            raise error
        torch.empty(10**15)

    monkeypatch.setattr(Prune, "__call__", prune)
    with pytest.raises(RunFailed) as raised:
        execute(configured(*local_overrides), tmp_path / "run")
    assert str(raised.value).startswith(
        f"stage prune: the memory of cpu does not suffice ({told}); use smaller batches"
    )
    assert read_record(tmp_path / "run")["status"] == "failed"


def test_a_model_that_cannot_be_used_fails_the_run_and_starts_no_tracker(configured, local_overrides, tmp_path, spied):
    damage(tmp_path / "tiny_opt")
    with pytest.raises(RunFailed, match=r"layers\.0\.fc1\.weight"):
        execute(configured(*local_overrides), tmp_path / "run")
    assert spied == []
    assert read_record(tmp_path / "run")["status"] == "failed"


def test_an_interruption_is_no_finished_run_either(configured, local_overrides, tmp_path, monkeypatch, spied):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Prune, "__call__", interrupt)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/record.json").write_text('{"status": "finished"}')  # of an earlier run
    with pytest.raises(KeyboardInterrupt):
        execute(configured(*local_overrides), tmp_path / "run")
    record = read_record(tmp_path / "run")
    assert record["status"] == "failed"
    assert "dense/perplexity" in record["metrics"]
    told = [(name, kwargs) for name, _, kwargs, _ in spied]
    assert (told[0], told[-1]) == (("start", {}), ("finish", {"failed": True}))
    assert not spied[0][3]  # the earlier record was gone before anything began


@pytest.mark.parametrize(
    "override",
    [
        "sparsity.level=1.0",
        "model.dtype=int3",
        "data.calibration=nowhere.npy",
        "device=gpu",
        "evaluate.batch_size=0",
        "training.lr=nan",
        "stages.prune.save_every=soon",
        "tracker={_target_: prune_lab.pruning.methods.dense.Dense}",
    ],
)
def test_a_mistake_in_the_settings_is_found_before_a_folder_is_made(configured, local_overrides, tmp_path, override):
    with pytest.raises(BadInput, match=override.partition("=")[0].replace(".", r"\.")):
        execute(configured(*local_overrides, override), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_told(configured, local_overrides, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"the run folder .* cannot be written .*hydra\.run\.dir"):
        execute(configured(*local_overrides), tmp_path / "file" / "run")


def test_secrets_are_not_written_down(configured, local_overrides, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "very-secret")
    monkeypatch.setenv("HF_TOKEN", "very-secret")
    execute(configured(*local_overrides, "method=magnitude", "save_model=false"), tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
    for path in filter(Path.is_file, (tmp_path / "run").rglob("*")):
        assert b"very-secret" not in path.read_bytes(), path.name


def test_stages_run_in_the_order_that_is_asked_for(configured, local_overrides, tmp_path):
    record = execute(configured(*local_overrides, "method=magnitude", "stages=[evaluate]"), tmp_path / "run")
    assert [name for name in record["metrics"] if name.endswith("perplexity")] == ["evaluate/perplexity"]
    assert not (tmp_path / "run" / "masks.safetensors").exists()
