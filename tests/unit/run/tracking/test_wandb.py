import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from prune_lab.errors import BadInput
from prune_lab.run.tracking.tracker import RunInfo
from prune_lab.run.tracking.wandb import WandbTracker

TWO_RUNS = """
import os, sys
from pathlib import Path
from prune_lab.evaluation.metric import MetricInfo
from prune_lab.run.tracking.tracker import RunInfo
from prune_lab.run.tracking.trackers import Trackers
from prune_lab.run.tracking.wandb import WandbTracker

before = sys.exit, sys.excepthook, dict(os.environ)
for number, failed in enumerate((False, True)):
    folder = Path(sys.argv[1]) / str(number)
    folder.mkdir()
    trackers = Trackers(WandbTracker(tags=["mine"]))
    config = {"method": {"name": f"method {number}"}, "model": {"token": "hf_secret"}}
    trackers.start(RunInfo(folder, config, f"run {number}", group="the sweep", tags=["theirs"]))
    trackers.log("dense", {"dense/perplexity": 10.0 + number})
    better = {"evaluate/perplexity": "lower", "evaluate/accuracy": "higher", "evaluate/uniqueness": None}
    trackers.define({name: MetricInfo("a label", better=way) for name, way in better.items()})
    trackers.log("evaluate", {"evaluate/perplexity": 20.0 + number, "evaluate/accuracy": float("inf")})
    trackers.series("finetune", 10, {"training/loss": 2.5, "training/grad_norm": 1.5})
    trackers.table("layers", ["name", "sparsity", "error"], [["block.0", 0.5, 0.25], ["block.1", 0.5, None]])
    trackers.finish({"evaluate/perplexity": 20.0 + number}, failed=failed)
assert before == (sys.exit, sys.excepthook, dict(os.environ))
"""


def records(path: Path):
    """The records of a ``.wandb`` file: after 7 bytes, blocks of 32 KiB that hold (checksum, length, part, content)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, content = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:  # too short for a header: padding
            position += left
            continue
        length, part = struct.unpack_from("<HB", data, position + 4)
        content += data[position + 7 : position + 7 + length]
        position += 7 + length
        if part in (1, 4):  # the whole, or the last part
            record = Record()
            record.ParseFromString(content)
            content = b""
            yield record


def logged(path: Path) -> dict:
    found = {"history": {}, "config": {}, "summary": {}}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["run"] = record.run
            found["config"].update({item.key: json.loads(item.value_json) for item in record.run.config.update})
        elif kind in ("history", "summary"):
            items = record.history.item if kind == "history" else record.summary.update
            found[kind].update({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
        elif kind == "config":  # W&B's own part of it: how charts are drawn
            found["charts"] = found.get("charts", {}) | {
                item.nested_key[2]: json.loads(item.value_json)
                for item in record.config.update
                if list(item.nested_key[:2]) == ["_wandb", "visualize"]
            }
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """Two runs of one process, the second of which fails; the home folder is one of its own, without a login."""
    folder, home = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("home")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "XDG_", "NETRC"))}
    environment = {**kept, "HOME": str(home), "PRUNE_LAB_CACHE": str(tmp_path_factory.mktemp("cache"))}
    done = subprocess.run(
        [sys.executable, "-c", TWO_RUNS, str(folder)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    paths = [path for number in "01" for path in (folder / number / "wandb").glob("offline-run-*/*.wandb")]
    return folder, home, paths, done.stdout + done.stderr


def test_two_runs_in_one_process_are_two_runs(two_runs):
    _, _, paths, _ = two_runs
    assert len(paths) == 2
    first, second = [logged(path) for path in paths]
    assert first["run"].run_id != second["run"].run_id
    assert first["history"]["dense/perplexity"] == 10 and second["history"]["dense/perplexity"] == 11
    assert first["summary"]["evaluate/perplexity"] == 20 and second["summary"]["evaluate/perplexity"] == 21


def test_metrics_are_defined_with_what_is_best_of_them(two_runs):
    _, _, paths, _ = two_runs
    defined = [each.metric for each in records(paths[0]) if each.WhichOneof("record_type") == "metric"]
    assert {each.name: (each.summary.min, each.summary.max) for each in defined} == {
        "evaluate/perplexity": (True, False),
        "evaluate/accuracy": (False, True),
        "training/step": (False, False),
        "training/loss": (False, False),
        "training/grad_norm": (False, False),
    }


def test_the_course_of_a_training_has_an_axis_of_its_own(two_runs):
    _, _, paths, _ = two_runs
    history = logged(paths[0])["history"]
    assert (history["training/step"], history["training/loss"], history["training/grad_norm"]) == (10, 2.5, 1.5)
    defined = [each.metric for each in records(paths[0]) if each.WhichOneof("record_type") == "metric"]
    assert {each.step_metric for each in defined if each.name in ("training/loss", "training/grad_norm")} == {
        "training/step"
    }


def test_a_failed_run_says_so(two_runs):
    _, _, paths, _ = two_runs
    assert [logged(path)["exit"] for path in paths] == [0, 1]


def test_the_run_carries_config_names_and_group(two_runs):
    _, _, paths, _ = two_runs
    found = logged(paths[1])
    assert found["config"]["method"] == {"name": "method 1"}
    run = found["run"]
    assert (run.project, run.display_name, run.run_group) == ("prune_lab", "run 1", "the sweep")
    assert sorted(run.tags) == ["mine", "theirs"]


def test_the_table_is_there_row_by_row(two_runs):
    folder, _, paths, _ = two_runs
    assert logged(paths[0])["history"]["layers/_type"] == "table-file"
    [table] = (folder / "0" / "wandb").glob("offline-run-*/files/media/table/layers*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["name", "sparsity", "error"]
    assert content["data"] == [["block.0", 0.5, 0.25], ["block.1", 0.5, None]]


def test_the_table_has_charts(two_runs):
    folder, _, paths, _ = two_runs
    assert set(logged(paths[0])["charts"]) == {"layers/sparsity"}
    [table] = (folder / "0" / "wandb").glob("offline-run-*/files/media/table/layers/sparsity_table*.table.json")
    assert json.loads(table.read_text())["data"] == [["block.0", 0.5], ["block.1", 0.5]]


def test_the_folder_of_a_sweep_can_be_synchronised(two_runs):
    folder, home, _, _ = two_runs
    runs = sorted(str(path) for path in folder.glob("*/wandb/offline-run-*"))
    environment = {**os.environ, "HOME": str(home), "WANDB_API_KEY": "0" * 40}
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", *runs]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert all(Path(run).name.rpartition("-")[2] in said.replace("\n", "") for run in runs), said


INTERRUPTED = """
import os, sys
from pathlib import Path
from prune_lab.run.tracking.tracker import RunInfo
from prune_lab.run.tracking.wandb import WandbTracker

tracker = WandbTracker()
tracker.start(RunInfo(Path(sys.argv[1]), {}, "toy"))
tracker.log("dense", {"dense/perplexity": 10.0})
if len(sys.argv) > 2:
    os._exit(9)
tracker.log("evaluate", {"evaluate/perplexity": 20.0})
tracker.finish({"evaluate/perplexity": 20.0}, failed=False)
"""


def test_an_interrupted_run_goes_on_under_its_id_and_another_one_does_not(tmp_path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment = {**kept, "HOME": str(tmp_path), "PRUNE_LAB_CACHE": str(tmp_path / "cache")}
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, *how in ((first, "killed"), (second,), (second,)):
        folder.mkdir(exist_ok=True)
        if folder == second and not list(second.iterdir()):  # as `prune_lab.run.finished_runs.begin` does
            (first / "wandb_id").rename(second / "wandb_id")
        done = subprocess.run([sys.executable, "-c", INTERRUPTED, str(folder), *how], env=environment, timeout=120)
        assert done.returncode == (9 if how else 0)
    # What the killed one has told is written down, while the next one is at work; that tells all stages again.
    (killed,) = first.glob("wandb/offline-run-*")
    (ended,) = [logged(path) for path in killed.glob("*.wandb")]
    assert (ended["history"]["dense/perplexity"], ended["exit"]) == (10, 1)
    parts = [logged(path) for path in sorted(second.glob("wandb/offline-run-*/*.wandb"), key=os.path.getmtime)]
    assert killed.name.rpartition("-")[2] == parts[0]["run"].run_id != parts[1]["run"].run_id
    assert [part["summary"]["evaluate/perplexity"] for part in parts] == [20, 20]


def test_nothing_is_written_to_the_home_folder_or_the_terminal(two_runs):
    _, home, _, output = two_runs
    assert list(home.rglob("*")) == []
    assert output == ""


def test_neither_secrets_nor_the_machine_are_told(two_runs):
    folder, _, paths, _ = two_runs
    told = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"method 0" in told
    assert b"hf_secret" not in told
    kinds = {record.WhichOneof("record_type") for path in paths for record in records(path)}
    assert "run" in kinds and not kinds & {"environment", "output", "output_raw", "stats"}
    assert all(record.run.host == "" for path in paths for record in records(path))
    assert not list(folder.rglob("wandb-metadata.json")) and not list(folder.rglob("requirements.txt"))


def test_the_file_of_metrics_is_written_too(two_runs):
    folder, _, _, _ = two_runs
    assert len((folder / "1" / "metrics.jsonl").read_text().splitlines()) == 3


def test_online_without_a_login_is_a_mistake_with_a_remedy_and_no_question(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked the user"))
    with pytest.raises(BadInput, match=r"(?s)WandbTracker\.mode=online.*wandb login.*offline"):
        WandbTracker(mode="online").prepare()
    assert list(tmp_path.iterdir()) == []


def test_disabled_does_nothing(tmp_path):
    tracker = WandbTracker(mode="disabled")
    tracker.start(RunInfo(tmp_path, {}, "toy"))
    tracker.log("dense", {"dense/perplexity": 1.0})
    tracker.table("layers", ["name"], [["a"]])
    tracker.finish({}, failed=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"mode": "on"}, "offline, online, disabled"),
        ({"project": ""}, r"WandbTracker\.project="),
        ({"project": "a/b"}, r"WandbTracker\.project="),
        ({"tags": "one"}, r"WandbTracker\.tags=.one. .*such as \[one\]"),
    ],
)
def test_a_wrong_key_is_refused_before_anything_starts(keys, named):
    with pytest.raises(BadInput, match=named):
        WandbTracker(**keys)
