import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from prune_lab.errors import BadInput
from prune_lab.tracking.base import RunInfo
from prune_lab.tracking.wandb import WandbTracker

TWO_RUNS = """
import sys
from pathlib import Path
from prune_lab.tracking.base import RunInfo
from prune_lab.tracking.trackers import Trackers
from prune_lab.tracking.wandb import WandbTracker

hooks = sys.exit, sys.excepthook
for number, failed in enumerate((False, True)):
    folder = Path(sys.argv[1]) / str(number)
    folder.mkdir()
    trackers = Trackers(WandbTracker(tags=["mine"]))
    config = {"method": {"name": f"method {number}"}, "model": {"token": "hf_secret"}}
    trackers.start(RunInfo(folder, config, f"run {number}", group="the sweep", tags=["theirs"]))
    trackers.log("dense", {"dense/perplexity": 10.0 + number})
    trackers.log("evaluate", {"evaluate/perplexity": 20.0 + number, "evaluate/accuracy": float("inf")})
    trackers.table("layers", ["name", "sparsity", "error"], [["block.0", 0.5, 0.25], ["block.1", 0.5, None]])
    trackers.finish({"evaluate/perplexity": 20.0 + number}, failed=failed)
assert hooks == (sys.exit, sys.excepthook)
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
    assert len((folder / "1" / "metrics.jsonl").read_text().splitlines()) == 2


def test_online_without_a_login_is_a_mistake_with_a_remedy_and_no_question(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked the user"))
    with pytest.raises(BadInput, match=r"(?s)tracker\.mode=online.*wandb login.*offline"):
        WandbTracker(mode="online").start(RunInfo(tmp_path, {}, "toy"))


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
        ({"project": ""}, "tracker.project"),
        ({"project": "a/b"}, "tracker.project"),
        ({"tags": "one"}, r"tracker.tags=\[one\]"),
    ],
)
def test_a_wrong_key_is_refused_before_anything_starts(keys, named):
    with pytest.raises(BadInput, match=named):
        WandbTracker(**keys)


def test_the_environment_is_given_back(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_CACHE_DIR", raising=False)
    monkeypatch.setenv("WANDB_DATA_DIR", "mine")
    monkeypatch.setenv("PRUNE_LAB_CACHE", str(tmp_path))
    with WandbTracker()._contained():
        assert os.environ["WANDB_DATA_DIR"] == "mine"
        assert os.environ["WANDB_CACHE_DIR"] == str(tmp_path / "wandb")
    assert "WANDB_CACHE_DIR" not in os.environ
