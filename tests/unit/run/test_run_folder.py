"""Whose files a run folder holds, and who is at work there."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from prune_lab.errors import BadInput, RunFailed
from prune_lab.run import artifacts
from prune_lab.run.own_files import take
from prune_lab.run.run_folder import check_free, claimed, disk_failures


def _contents(folder: Path) -> dict[str, str]:
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_text() for name, path in found.items() if not name.startswith(".prune_lab")}


def _run(folder: Path, key: str, *, status: str | None) -> None:
    """Leaves what a run leaves that ended so, or was killed."""
    with claimed(folder):
        taken = take(folder, key, None)
        (folder / "model").mkdir(exist_ok=True)
        (folder / "model/weights").write_text(key)
        (folder / "blocks").mkdir(exist_ok=True)
        (folder / "blocks/block_0").write_text(key)
        taken.note()
        if status:
            (folder / "record.json").write_text(json.dumps({"status": status, "key": key}))


def _clear(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.mark.parametrize("name", [artifacts.RECORD, *artifacts.OUTPUTS, *artifacts.PROGRESS, ".hydra"])
@pytest.mark.parametrize("kind", ["file", "folder", "dead link", "FIFO", "device"])
def test_names_that_runs_use_are_refused_where_no_run_was(tmp_path, name, kind):
    folder = tmp_path / "mine"
    folder.mkdir()
    if kind == "file":
        (folder / name).write_text('{"status": "done"}')
    elif kind == "folder":
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text("of: another program of Hydra's")
    elif kind == "FIFO":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("nowhere" if kind == "dead link" else "/dev/zero")
    with pytest.raises(BadInput, match=f"holds {name}, which no run") as told, claimed(folder):
        pass
    assert "hydra.run.dir" in str(told.value)
    assert [path.name for path in folder.iterdir()] == [name]


@pytest.mark.parametrize(
    "left",
    [
        {},
        {"config.yaml": ""},
        {"config.yaml": "model:\n  _target_: prune_lab.models"},
        {"config.yaml": "model: {_target_: prune_lab.models.load.Checkpoint}\n", "hydra.yaml": ""},
    ],
    ids=lambda left: " ".join(left) or "nothing",
)
def test_a_process_that_was_killed_while_hydra_wrote_keeps_nobody_out(tmp_path, left):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "prune_lab.log").touch()
    for name, text in left.items():
        (tmp_path / ".hydra" / name).write_text(text)
    with claimed(tmp_path):
        pass


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("name", ["prune_lab.log", ".hydra", ".hydra/config.yaml", ".prune_lab", ".prune_lab/run.json"])
@pytest.mark.parametrize("kind", ["FIFO", "folder", "device"])
def test_what_no_run_can_write_into_is_refused(tmp_path, used, name, kind):
    folder, is_folder = tmp_path / "run", name in (".hydra", ".prune_lab")
    if used:
        _run(folder, "one", status="finished")
    _clear(folder / name)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        (folder / name).write_text("mine") if is_folder else (folder / name).mkdir()
    elif kind == "FIFO":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero")
    with pytest.raises(BadInput, match=rf"holds {name}, which no run.*move it away"), claimed(folder):
        pass


@pytest.mark.parametrize("status", ["failed", None])
@pytest.mark.parametrize("name", [artifacts.RECORD, *artifacts.OUTPUTS, *artifacts.PROGRESS])
@pytest.mark.parametrize("kind", ["FIFO", "other", "device"])
def test_what_a_run_that_goes_on_cannot_use_is_set_aside(tmp_path, status, name, kind):
    folders = (
        artifacts.MODEL,
        artifacts.ADAPTER,
        artifacts.BLOCKS,
        artifacts.TRAINING,
        artifacts.ALLOCATION,
        *artifacts.EVALUATION_FOLDERS,
    )
    _run(tmp_path, "same", status=status)
    path = tmp_path / name
    _clear(path)
    if kind == "other":
        path.write_text("mine") if name in folders else path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with claimed(tmp_path):
        take(tmp_path, "same", None)
    [earlier] = tmp_path.glob("earlier-*")
    assert os.path.lexists(earlier / name) and not os.path.lexists(path)


@pytest.mark.parametrize("path", ["/", "//", "/usr/..", "link"])
def test_the_root_of_the_file_system_is_no_run_folder(tmp_path, path):
    (tmp_path / "link").symlink_to("/")
    with pytest.raises(BadInput, match=r"is the root of the file system.*hydra\.run\.dir=DIR"):
        check_free(tmp_path / path)


def test_other_files_are_in_nobodys_way(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    _run(tmp_path, "one", status="finished")
    _run(tmp_path, "two", status="finished")
    assert _contents(tmp_path)["notes.txt"] == "mine"


@pytest.mark.parametrize("status", ["finished", "failed", "stopped", None])
@pytest.mark.parametrize("key", ["same", "other"])
def test_only_a_run_that_did_not_finish_goes_on(tmp_path, status, key):
    _run(tmp_path, "same", status=status)
    with claimed(tmp_path):
        take(tmp_path, key, None)
    goes_on = key == "same" and status != "finished"
    assert not (tmp_path / "record.json").exists()
    assert (tmp_path / "blocks/block_0").exists() == (tmp_path / "model").exists() == goes_on
    earlier = list(tmp_path.glob("earlier-*"))
    assert len(earlier) == (0 if goes_on else 1)
    if earlier:
        assert _contents(earlier[0]).items() >= {"model/weights": "same", "blocks/block_0": "same"}.items()


@pytest.mark.parametrize("change", ["changed", "added"])
def test_a_model_that_somebody_changed_after_an_interruption_is_set_aside(tmp_path, change):
    _run(tmp_path, "same", status=None)
    (tmp_path / "model" / ("weights" if change == "changed" else "more")).write_text("trained further")
    with claimed(tmp_path):
        take(tmp_path, "same", None)
    [earlier] = tmp_path.glob("earlier-*")
    assert "trained further" in _contents(earlier).values()
    assert (tmp_path / "blocks/block_0").exists() and not (tmp_path / "model").exists()


def test_what_a_killed_process_was_writing_goes_with_the_next_run(tmp_path):
    _run(tmp_path, "one", status=None)
    for name in (".model.abcd1234", ".masks.safetensors.abcd1234", ".mine.abcd1234"):
        (tmp_path / name).write_text("")
    with claimed(tmp_path):
        take(tmp_path, "one", None)
    assert [name for name in os.listdir(tmp_path) if name.endswith("1234")] == [".mine.abcd1234"]


def test_who_is_in_may_enter_again(tmp_path):
    with claimed(tmp_path / "run"), claimed(tmp_path / "run"):
        check_free(tmp_path / "run")


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_fails_is_told_with_the_way_out(tmp_path, kind):
    with pytest.raises(RunFailed, match=r"hydra\.run\.dir=DIR") as told, disk_failures(tmp_path):
        raise OSError(kind, os.strerror(kind), "some/file")
    assert f"some/file: {os.strerror(kind)}" in str(told.value)


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), disk_failures(tmp_path):
        (tmp_path / "nothing").read_text()
