"""The steps of scripts/gpu_check.sh run on their own, are compared with the CPU, and large files travel in parts."""

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "scripts" / "gpu_check"


@pytest.fixture
def module(monkeypatch):
    """``module(name)`` imports one of the script's."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("running", "table", "prepare"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return import_module


def fail():
    raise ValueError("no such\nlayer")


def die():
    os._exit(3)


def hang():
    os.system("sleep 100")
    return {}


def test_a_step_that_fails_dies_or_hangs_keeps_no_other_from_running(module, tmp_path):
    running = module("running")
    works = {"fails": fail, "dies": die, "hangs": hang, "prints": lambda: print("told") or {"found": 1}}
    steps = [running.Step(name, work, 1.0) for name, work in works.items()]
    start = time.monotonic()
    lines = running.run_all([*steps, running.Step("last", dict, 9.0)], tmp_path, 60)
    assert time.monotonic() - start < 90  # it did not wait for the one that hangs
    ended = {line["step"]: (line["status"], line.get("error")) for line in lines}
    assert ended == {
        "fails": ("failed", "ValueError: no such layer"),
        "dies": ("failed", "the process ended with 3"),
        "hangs": ("timed out", "took longer than 1 s"),
        "prints": ("ok", None),
        "last": ("ok", None),
    }
    assert [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()] == lines
    assert "told" in (tmp_path / "log.txt").read_text()
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_what_no_time_is_left_for_is_named(module, tmp_path):
    running = module("running")
    first = running.Step("first", hang, 30.0)
    lines = running.run_all([first, running.Step("second", dict, 30.0)], tmp_path, 0.5)
    assert [line["status"] for line in lines] == ["timed out", "skipped"]
    assert "no time was left" in lines[1]["error"]


def test_processes_start_anew_where_forks_could_use_no_gpu(module, tmp_path, monkeypatch):
    running = module("running")
    monkeypatch.setattr("torch.cuda._is_in_bad_fork", lambda: True)
    lines = running.run_all([running.Step("anew", dict, 60.0)], tmp_path, 60)
    assert [line["status"] for line in lines] == ["ok"]
    assert not running._forks_can_use_gpus()


def line(step, perplexity, dtype="bfloat16", device="cuda", known_by="these"):
    return {
        "step": step, "status": "ok", "seconds": 1.0, "method": "wanda", "dtype": dtype, "device": device,
        "perplexity": perplexity, "prune_seconds": 0.5, "peak_mb": 10.0, "known_by": known_by,
    }  # fmt: skip


def test_numbers_are_compared_with_those_of_a_cpu_in_the_same_type_first(module):
    table = module("table")
    lines = [line("a", 100.0), line("b", 100.0, "float16"), line("on the CPU: x", 103.0, device="cpu")]
    carried = [line("x", 104.0, "float32", "cpu"), line("y", 1.0, "float32", "cpu", "others")]
    rows = table.compare(lines, carried)
    assert [(row["step"], row["reference"]["perplexity"], row["agrees"]) for row in rows] == [
        ("a", 103.0, False),  # 2 % is allowed in the same type
        ("b", 104.0, True),  # and 5 % from float32
    ]
    text = table.markdown([*lines, {"step": "tests", "status": "timed out", "seconds": 9, "error": "late"}], rows, "")
    assert "-2.91% (!)" in text and "- tests: timed out. late" in text
    assert "All steps went well." in table.markdown(lines, [], "")
    assert table.compare(lines[:1], [])[0]["agrees"] is None


def test_a_file_in_parts_is_joined(module, tmp_path):
    prepare = module("prepare")
    file = tmp_path / "model.gguf"
    file.write_bytes(bytes(range(250)))
    prepare.split(file, tmp_path / "parts", 100)
    assert len(list((tmp_path / "parts").iterdir())) == 3
    for _ in range(2):  # the second time it is there
        assert prepare.joined(tmp_path / "parts").read_bytes() == file.read_bytes()
    assert prepare.joined(file) == file
    (tmp_path / "parts" / "model.gguf.part001").unlink()
    with pytest.raises(SystemExit, match="parts are missing"):
        prepare.joined(tmp_path / "parts")


def test_what_is_carried_has_a_version_in_the_lock(module):
    prepare = module("prepare")
    names = {name.lower().replace("_", "-") for name in prepare.pins()}
    assert set(prepare.PACKAGES) <= names
