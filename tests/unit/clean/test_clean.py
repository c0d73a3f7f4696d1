"""``prune-lab-clean`` shows all that the lab has left, and removes of it what is asked for and nothing else."""

import io
import json
import os
import time
from hashlib import sha256

import pytest

from prune_lab.cache.store import Store
from prune_lab.clean.choose import parse_age, parse_size
from prune_lab.clean.command import main
from prune_lab.run.own_files import take
from prune_lab.run.run_folder import claimed
from prune_lab.utils.locks import locked_at_once

DAY = 86400


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNE_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def run(folder, *, status="finished", age=0.0, size=1000):
    """A run folder as the lab leaves it."""
    folder.mkdir(parents=True)
    with claimed(folder):
        taken = take(folder, "key", None)
        (folder / "model").mkdir()
        (folder / "model/model.safetensors").write_bytes(b"x" * size)
        (folder / "metrics.jsonl").write_text("{}\n")
        (folder / "prune_lab.log").write_text("a line\n")
        (folder / "wandb/offline-run-1").mkdir(parents=True)
        (folder / "wandb/offline-run-1/run.wandb").write_bytes(b"w")
        taken.note()
        taken.give_way()
        if status != "interrupted":
            record = {"status": status, "metrics": {}, "files": taken.manifest()}
            (folder / "record.json").write_text(json.dumps(record))
        else:
            (folder / "blocks").mkdir()
            (folder / "blocks/block_0.safetensors").write_bytes(b"b")
    old = time.time() - age
    os.utime(folder / ".prune_lab/run.json", (old, old))
    return folder


def entry(here, name, *, age=0.0, size=1000, what="data"):
    store, key = Store(here / "cache/store", 10**9), sha256(name.encode()).hexdigest()
    store.keep(key, lambda folder: (folder / what).write_bytes(b"x" * size))
    path = store.folder / key[:2] / key
    old = time.time() - age
    os.utime(path / "entry.json", (old, old))
    return path


def clean(capsys, *arguments, status=0):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    captured = capsys.readouterr()
    assert ended.value.code == status, captured
    return captured.out + captured.err


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_what_there_is_is_shown_and_stays(here, capsys):
    run(here / "outputs/a")
    run(here / "outputs/sweeps/one/0", status="failed", age=40 * DAY)
    run(here / "outputs/b", status="interrupted")
    entry(here, "one", what="state.json")
    before = contents(here)
    said = clean(capsys)
    assert said.startswith("4 items, ")
    for words in ("finished", "failed", "interrupted", "stage", "kept", "40 d"):
        assert words in said
    assert {name for name in contents(here) if "/locks" not in name} == {
        name for name in before if "/locks" not in name
    }


def test_what_is_old_goes_whole(here, capsys):
    old, new = run(here / "outputs/old", age=40 * DAY), run(here / "outputs/new")
    old_entry, new_entry = entry(here, "old", age=40 * DAY), entry(here, "new")
    assert "chosen: 2 items" in clean(capsys, "--older-than", "30d") and old.exists() and old_entry.exists()
    assert "removed 2 of 2 items" in clean(capsys, "--older-than", "30d", "--remove", "--yes")
    assert not old.exists() and not old_entry.exists()
    assert (new / "model/model.safetensors").exists() and (new_entry / "data").exists()


def test_status_and_place_choose(here, capsys):
    folders = {
        status: run(here / "outputs" / status, status=status) for status in ("finished", "failed", "interrupted")
    }
    clean(capsys, "--status", "failed,interrupted", "--remove", "--yes")
    assert [status for status, folder in folders.items() if folder.exists()] == ["finished"]
    kept = entry(here, "one")
    clean(capsys, "--only", "runs", "--larger-than", "1B", "--remove", "--yes")
    assert kept.exists() and not folders["finished"].exists()


def test_the_oldest_goes_until_the_rest_is_small_enough(here, capsys):
    paths = [entry(here, str(age), age=age * DAY, size=10_000) for age in (3, 1, 2)]
    clean(capsys, "--only", "store", "--max-size", "15kB", "--remove", "--yes")
    assert [path.exists() for path in paths] == [False, True, False]


def test_what_is_in_use_stays(here, capsys):
    folder = run(here / "outputs/a", age=40 * DAY)
    with locked_at_once(folder / ".prune_lab/lock"):  # as another process holds it
        said = clean(capsys, "--older-than", "30d", "--remove", "--yes", status=0)
    assert (folder / "record.json").exists() and "removed" not in said


def test_an_entry_that_a_process_is_making_stays(here, capsys):
    path = entry(here, "one", age=40 * DAY)
    with Store(here / "cache/store", 10**9).claimed(path.name, "entry"):
        said = clean(capsys, "--older-than", "30d", "--remove", "--yes", status=1)
    assert path.exists() and "a process is at work on it" in said


def test_files_of_others_and_what_was_changed_stay(here, capsys):
    folder = run(here / "outputs/a", age=40 * DAY)
    (folder / "notes.txt").write_text("mine")
    (folder / "model/README.md").write_text("mine")
    (folder / "metrics.jsonl").write_text("changed since\n")
    said = clean(capsys, "--older-than", "30d", "--remove", "--yes", status=1)
    assert "metrics.jsonl, model, notes.txt" in said
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert left == {"notes.txt", "model/README.md", "metrics.jsonl"}


def test_links_are_neither_followed_nor_removed(here, capsys):
    outside = here / "outside"
    run(outside / "elsewhere", age=40 * DAY)
    (here / "outputs").mkdir()
    (here / "outputs/link").symlink_to(outside)
    folder = run(here / "outputs/a", age=40 * DAY)
    (folder / "model/model.safetensors").rename(outside / "model.safetensors")
    (folder / "model").rmdir()
    (folder / "model").symlink_to(outside)
    (folder / "wandb/offline-run-1/run.wandb").unlink()
    (folder / "wandb/offline-run-1").rmdir()
    (folder / "wandb").rmdir()
    (folder / "wandb").symlink_to(outside)
    (outside / "offline-run-1").mkdir()
    (outside / "offline-run-1/run.wandb").write_bytes(b"mine")
    before = contents(outside)
    clean(capsys, "--older-than", "30d", "--remove", "--yes", status=1)
    assert contents(outside) == before
    assert (folder / "model").is_symlink() and not (folder / "record.json").exists()


@pytest.mark.parametrize(
    "files",
    [
        {"../../precious": [4, 0, 0]},
        {"/etc/hostname": [4, 0, 0]},
        {"precious": [4, 0, 0]},
        {"model/../precious": [4, 0, 0]},
        {"model": []},
        {"model/x": "y"},
        [],
        None,
    ],
    ids=str,
)
def test_notes_that_lie_remove_nothing(here, capsys, files):
    folder = here / "outputs/x/a"
    (folder / ".prune_lab").mkdir(parents=True)
    for place in (here / "outputs", folder):
        (place / "precious").write_text("mine")
    times = (folder / "precious").stat()
    noted = {
        name: [4, times.st_mtime_ns, 0] if stamp == [4, 0, 0] else stamp for name, stamp in dict(files or {}).items()
    }
    (folder / ".prune_lab/run.json").write_text(json.dumps({"key": "k", "files": noted if files else files}))
    (folder / "record.json").write_text(
        json.dumps({"status": "finished", "files": {name: {"bytes": 4} for name in noted}})
    )
    os.utime(folder / ".prune_lab/run.json", (0, 0))
    with pytest.raises(SystemExit):
        main(["--older-than", "1d", "--remove", "--yes"])
    assert (folder / "precious").exists() and (here / "outputs/precious").exists()


def test_folders_without_the_lab_s_notes_are_no_runs(here, capsys):
    for name in ("model", "training"):
        (here / "outputs/mine" / name).mkdir(parents=True)
        (here / "outputs/mine" / name / "model.safetensors").write_text("mine")
    (here / "cache/store/ab/mine").mkdir(parents=True)
    (here / "cache/store/ab/mine/data").write_text("mine")
    (here / "cache/store/ab" / ("a" * 64)).mkdir()
    assert clean(capsys, "--larger-than", "0B", "--remove", "--yes").startswith("0 items")
    assert (here / "outputs/mine/model/model.safetensors").exists() and (here / "cache/store/ab/mine/data").exists()


def test_an_entry_with_a_file_of_others_stays(here, capsys):
    path = entry(here, "one", age=40 * DAY)
    (path / "notes.txt").write_text("mine")
    assert "notes.txt" in clean(capsys, "--older-than", "30d", "--remove", "--yes", status=1)
    assert (path / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--remove"], "--remove needs to know what; give --older-than"),
        (["--yes"], "--yes answers the question of --remove"),
        (["--older-than", "30"], "--older-than 30 is not allowed; allowed: a number and a unit, such as 30d"),
        (["--max-size", "big"], "--max-size big is not allowed"),
        (["--status", "good"], "--status good is not allowed; allowed: finished"),
        (["nowhere"], "nowhere does not exist"),
    ],
)
def test_mistakes_are_told(here, capsys, arguments, said):
    assert said in clean(capsys, *arguments, status=2)


def test_nothing_is_removed_unasked_where_nobody_can_be_asked(here, capsys, monkeypatch):
    folder = run(here / "outputs/a", age=40 * DAY)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert "give --yes" in clean(capsys, "--older-than", "30d", "--remove", status=2) and folder.exists()


def test_ages_and_sizes():
    assert (parse_age("30d", ""), parse_age("1.5h", ""), parse_age("2 W", "")) == (30 * DAY, 5400, 14 * DAY)
    assert (parse_size("1GB", ""), parse_size("2.5 kb", ""), parse_size("7B", "")) == (10**9, 2500, 7)
