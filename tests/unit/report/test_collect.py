"""Run folders to runs, flat tables and embedded data; the page itself is looked at in tests/page."""

import csv
import json
import math
import os

import pyarrow.parquet
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from prune_lab.report.page.asked import Asked, read_asked
from prune_lab.report.page.collect import Collection
from prune_lab.report.page.command import report
from prune_lab.report.page.flat import write_flat
from prune_lab.report.page.html import page_of
from prune_lab.report.page.payload import embedded, payload_of
from prune_lab.run.conf_folder import conf_folder
from prune_lab.utils import secrets
from tests.unit.report.conftest import finished

LAYERS = """name,rows,columns,sparsity,relative_output_error,block_relative_output_error,seconds
model.layers.0.mlp.up_proj,4,4,0.5,0.123456,0.25,0.1
model.layers.1.mlp.up_proj,4,4,0.75,,0.5,0.1
"""


def settings(*overrides):
    """The configuration of a run as its record has it."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return OmegaConf.to_container(compose("config", list(overrides)), resolve=True)


@pytest.fixture
def collect(tmp_path):
    def collected():
        collection = Collection(tmp_path / "runs")
        collection.refresh()
        return collection

    return collected


def test_runs_are_found_however_deep_and_known_by_their_settings(write, collect):
    config = settings("method=dsnot", "model=reference_llama", "sparsity.level=0.7", "seed=3", "allocation=owl")
    choices = {
        "method": "dsnot",
        "method@method.inner": "wanda",
        "data": "stdlib",
        "allocation": "owl",
        "finetune": "none",
    }
    record = {"status": "finished", "config": config, "choices": choices, "protocol": {}}
    write("a/b/c/d", record | {"metrics": {"evaluate/perplexity": 31.5}})
    write("e", finished())
    deep, shallow = sorted(collect().runs, key=lambda run: -len(run.folder))
    assert (deep.folder, shallow.folder) == ("a/b/c/d", "e")
    assert deep.attributes | {"written": ""} == {
        "model": "reference_llama", "data": "stdlib", "method": "dsnot on wanda", "pattern": "unstructured",
        "level": 0.7, "allocation": "owl", "finetune": "none", "settings": None, "evaluation": None, "seed": 3,
        "status": "finished", "written": "",
    }  # fmt: skip
    assert deep.metrics == {"evaluate/perplexity": 31.5}


def test_runs_are_told_apart_by_what_was_typed_for_some_of_them_only(write, collect):
    for number, power in enumerate((0, 1)):
        typed = ["method=mine", f"method.power={power}", "data.samples=16", "evaluate.seqlen=64", f"seed={number}"]
        write(str(number), finished() | {"overrides": typed})
    assert [run.attributes["settings"] for run in collect().runs] == ["method.power=0", "method.power=1"]


def test_jobs_of_a_sweep_come_in_their_order(write, collect):
    for name in ("10", "9", "1"):
        write(name, finished())
    assert [run.folder for run in collect().runs] == ["1", "9", "10"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        ("[1]", "holds a list"),
        ('{"config": {}}', "no status"),
        ('{"status": "finished", "metrics": [1]}', "its metrics"),
        ('{"status": "finished", "config": {"model": 3}}', "its config"),
        ('{"status": "finished", "config": {"method": {"_target_": {"a": 1}}, "sparsity": [1]}}', "its config"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_damaged_record_is_named_and_the_others_are_read(write, collect, content, reason):
    write("broken", content)
    write("whole", finished())
    collection = collect()
    assert [run.folder for run in collection.runs] == ["whole"]
    [(name, why)] = collection.unreadable
    assert name == "broken" and reason in why
    assert collection.counts == {"finished": 1, "unreadable": 1, "without a record": 0}


def test_bytes_that_are_no_text_are_a_damaged_record(write, collect):
    (write("broken", "") / "record.json").write_bytes(b"\xff\xfe")
    assert "not in UTF-8" in collect().unreadable[0][1]


def test_failed_and_stopped_runs_keep_their_messages(write, collect):
    write("0", {"status": "failed", "error": "RunFailed: layer 3\nraise method.damping"})
    write("1", {"status": "stopped", "reason": "not worth it"})
    assert [(run.status, run.message) for run in collect().runs] == [
        ("failed", "RunFailed: layer 3\nraise method.damping"),
        ("stopped", "not worth it"),
    ]


def test_a_run_that_failed_before_it_had_settings_is_told_by_what_was_typed(write, collect):
    folder = write("0", {"status": "failed", "error": "x"})
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text("- method=ria\n- seed=4\n- sparsity.level=0.6\n")
    [run] = collect().runs
    assert [run.attributes[name] for name in ("method", "seed", "level")] == ["ria", 4, 0.6]
    assert run.command == "prune-lab method=ria seed=4 sparsity.level=0.6"


def test_runs_at_work_are_counted_but_parts_of_a_run_folder_are_no_runs(write, collect, tmp_path):
    folder = write("0", finished())
    (folder / "model").mkdir()
    (folder / "model" / "record.json").write_text("{")
    begun = tmp_path / "runs" / "1"
    begun.mkdir()
    for name in ("config.yaml", "environment.json"):
        (begun / name).touch()
    collection = collect()
    assert (len(collection.runs), collection.open, collection.unreadable) == (1, ["1"], [])


def test_only_what_has_changed_is_read_again(write, collect, tmp_path):
    folder = write("0", finished())
    write("1", finished())
    collection = collect()
    first, other = collection.runs
    assert not collection.refresh()
    (folder / "record.json").write_text(json.dumps(finished(**{"prune/seconds": 1.0})))
    os.utime(folder / "record.json", ns=(1, 1))
    assert collection.refresh()
    again, same = collection.runs
    assert again.metrics == {"prune/seconds": 1.0} and first.metrics == {}
    assert same is other
    (folder / "layers.csv").write_text(LAYERS)
    assert collection.refresh() and collection.runs[0].layers is not None
    (folder / "record.json").unlink()
    assert collection.refresh() and len(collection.runs) == 1


def test_metrics_that_are_no_numbers_are_left_out_and_infinite_ones_are_kept(write, collect):
    record = '{"status": "finished", "metrics": {"a/x": Infinity, "a/y": "1", "a/z": true, "model": 2, "a/w": 1}}'
    write("0", record)
    assert collect().runs[0].metrics == {"a/x": math.inf, "a/w": 1.0}


def test_layers_rounds_and_held_out_losses_are_read(write, collect):
    record = finished() | {"protocol": {"finetune": {"held_out": {"50": 3.0, "0": 5.0}}}}
    rounds = "round,sparsity,perplexity_pruned,perplexity_tuned,loss\n1,0.5,30,20,2.5\n"
    write("0", record, layers=LAYERS, rounds=rounds)
    [run] = collect().runs
    assert run.held_out == ((0.0, 5.0), (50.0, 3.0))
    assert run.rounds == ((1.0, 0.5, 30.0, 20.0, 2.5),)
    assert run.layers.measures["sparsity"] == (0.5, 0.75)
    layers = payload_of(collect(), 0)["layers"]
    assert layers["pool"] == [[(0, "mlp.up_proj"), (1, "mlp.up_proj")]]
    assert layers["of"] == [[0, [0.5, 0.75], [0.1235, "nan"], [0.25, 0.5]]]


def test_continuations_are_read_and_kept_once_and_within_bounds(write, collect):
    rows = [{"prompt": "A", "continuation": " dense"}, {"prompt": "B" * 20_000, "continuation": "x"}]
    for name, pruned in (("a", " one"), ("b", " two")):
        folder = write(name, finished(**{"evaluate/repeated_4grams": 0.5}))
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / "continuations_dense.jsonl").write_text(lines)
        (folder / "continuations.jsonl").write_text(json.dumps(rows[0] | {"continuation": pruned}) + "\n[1]\n{half")
    first = collect().runs[0]
    assert [each.texts for each in first.continuations] == [{"dense": " dense", "evaluate": " one"}, {"dense": "x"}]
    assert len(first.continuations[1].prompt) == 10_000
    found = payload_of(collect(), 0)["continuations"]
    shown = [[[text if text is None else found["pool"][text] for text in each] for each in run] for run in found["of"]]
    assert [run[0] for run in shown] == [["A", " dense", " one"], ["A", " dense", " two"]]
    assert shown[1][1][1:] == ["x", None] and len(found["pool"]) == 6
    (folder / "continuations.jsonl").unlink()
    assert "evaluate" not in collect().runs[1].continuations[0].texts


def test_parquet_and_csv_hold_the_same(write, collect, tmp_path):
    protocol = {"model": {"dtype": "float32"}, "text": 'a "quoted", one'}
    config = settings("method=wanda", "sparsity.level=0.7", "seed=2")
    metrics = {"dense/perplexity": 10.5, "evaluate/perplexity": 20.25}
    record = {"status": "finished", "config": config, "choices": {"method": "wanda"}, "protocol": protocol}
    write("0", record | {"metrics": metrics})
    write("1", {"status": "failed", "error": "two\nlines", "metrics": {"dense/perplexity": 10.5}})
    write_flat(collect().runs, tmp_path / "out")
    table = pyarrow.parquet.read_table(tmp_path / "out" / "runs.parquet")
    rows = table.to_pylist()
    assert rows[0]["evaluate/perplexity"] == 20.25 and rows[1]["evaluate/perplexity"] is None
    assert (rows[0]["method"], rows[0]["level"], rows[0]["seed"]) == ("wanda", 0.7, 2)
    assert (rows[1]["status"], rows[1]["message"], rows[1]["seed"]) == ("failed", "two\nlines", None)
    assert json.loads(rows[0]["protocol"]) == protocol
    with (tmp_path / "out" / "runs.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert written == [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]


def test_half_of_a_surrogate_pair_does_not_stop_the_report(write, tmp_path):
    write("0", '{"status": "failed", "error": "\\ud800", "protocol": {"\\ud800": "\\udfff"}}')
    report(tmp_path / "runs", tmp_path / "out")
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_command_has_no_secrets_and_is_quoted_for_a_shell():
    typed = ["tracker.api_key=hunter2", "model.path=$(rm -rf ~)"]
    assert Asked(overrides=typed).command == "prune-lab 'tracker.api_key=***' 'model.path=$(rm -rf ~)'"
    assert Asked().command is None


def test_secrets_in_records_of_others_stay_there(write, collect, monkeypatch):
    monkeypatch.setattr(secrets, "_known", set())
    told = {
        "config": settings() | {"tracker": {"token": "hunter2x"}, "model": {"name": "https://me:hunter2y@host"}},
        "overrides": ["tracker={token: hunter2x}", "data.root=https://me:hunter2y@host/x", "seed=0"],
        "error": "BadInput: https://me:hunter2z@host refuses hunter2x",
        "protocol": {"data": {"repo": "https://me:hunter2y@host"}},
    }
    write("0", finished() | told)
    write("1", finished() | {"protocol": {"note": "hunter2x is a word here"}})
    run, other = collect().runs
    assert "hunter2" not in repr(run)
    assert run.message == "BadInput: https://me:***@host refuses ***" and "tracker={token: ***}" in str(run.command)
    assert other.protocol["note"] == "hunter2x is a word here"


def test_a_record_of_an_earlier_version_is_told_by_hydras_files_or_by_its_classes(tmp_path):
    record = {"config": {}}
    assert read_asked(record, tmp_path).choice("method", {"_target_": "elsewhere.Wanda"}) == "Wanda"
    assert read_asked(record, tmp_path).choice("method", None) is None
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "hydra.yaml").write_text(
        "hydra: {runtime: {choices: {method: dsnot, method@method.inner: ria, experiment: null}}}"
    )
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- method=dsnot\n")
    asked = read_asked(record, tmp_path)
    assert asked.choice("method", {"_target_": "elsewhere.Wanda"}) == "dsnot on ria"
    assert (asked.typed, asked.command) == ({"method": "dsnot"}, "prune-lab method=dsnot")
    for damaged in ("[1]", "{", "hydra: 3"):
        (tmp_path / ".hydra" / "hydra.yaml").write_text(damaged)
        assert read_asked(record | {"choices": [1], "overrides": [2]}, tmp_path).choices == {}


def test_what_records_say_cannot_leave_the_data(write, collect):
    attack = "</script><script>alert(1)</script><!-- {{style}} & \u2028"
    write(
        "0", {"status": "failed", "error": attack, "config": {"model": {"name": attack}}, "protocol": {attack: attack}}
    )
    page = page_of(collect(), attack)
    assert "alert(1)</script>" not in page
    assert page.count("<script") == 6 and page.count("</script>") == 6
    assert page.count("<title>&lt;/script&gt;") == 1
    data = page.partition('id="data-runs">')[2].partition("</script>")[0]
    assert json.loads(data)["messages"] == {"0": attack}
    assert json.loads(data)["attributes"]["model"]["values"] == [attack]


def test_embedded_data_is_json_without_marks_of_html():
    assert embedded({"a": "<&>\ud800"}) == '{"a":"\\u003c\\u0026\\u003e?"}'


def test_sections_of_protocols_that_are_alike_are_kept_once(write, collect):
    for seed in range(3):
        write(str(seed), finished() | {"protocol": {"model": {"dtype": "float32"}, "seed": seed % 2}})
    protocols = payload_of(collect(), 0)["protocols"]
    assert len(protocols["pool"]) == 3
    places = protocols["of"]
    assert places[0] == places[2] != places[1]


def test_a_run_that_was_taken_from_another_is_counted_but_not_shown_again(write, collect):
    for name, identity in (("a/0", "x"), ("a/1", "y"), ("b/0", "x"), ("b/1", None), ("b/2", None)):
        write(name, finished() | {"identity": identity})
    write("c/0", finished() | {"identity": "y", "status": "failed"})
    found = collect()
    assert [run.folder for run in found.runs] == ["a/0", "a/1", "b/1", "b/2", "c/0"]
    assert found.counts["taken from these"] == 1 and found.counts["finished"] == 4
