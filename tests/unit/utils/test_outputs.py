import os
from pathlib import Path

import pytest

from prune_lab.errors import BadInput
from prune_lab.utils.outputs import check_writable, refuse_foreign


def check(folder):
    refuse_foreign(folder, {"table.csv": "number,state,", "other.csv": "x"}, "give --out DIR")


def test_what_is_not_there_and_what_the_lab_wrote_may_be_replaced(tmp_path):
    check(tmp_path / "nowhere")
    for content in ("", "number,state,loss\n", "-" * 2**21 + "number,state,"):
        (tmp_path / "table.csv").write_text(content)
        check(tmp_path)


@pytest.mark.parametrize("kind", ["text", "bytes", "FIFO", "folder", "dead link", "device"])
def test_what_is_of_others_is_refused_and_stays(tmp_path, kind):
    path = tmp_path / "table.csv"
    if kind in ("text", "bytes"):
        path.write_bytes(b"mine" if kind == "text" else b"\xff\0")
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere" if kind == "dead link" else "/dev/zero")
    before = path.lstat()
    with pytest.raises(BadInput, match=r"holds table\.csv, which the lab has not written.*give --out DIR, or move it"):
        check(tmp_path)
    assert path.lstat() == before


@pytest.mark.parametrize("kind", ["file", "below a file", "proc"])
def test_where_nothing_can_be_written_is_told_before_the_work(tmp_path, kind):
    (tmp_path / "file").touch()
    folder = {"file": tmp_path / "file", "below a file": tmp_path / "file/x", "proc": Path("/proc/x")}[kind]
    with pytest.raises(
        BadInput, match=rf"^--results: the folder {folder} cannot be written \(.*\); give --results DIR"
    ):
        check_writable(folder, "--results", "give --results DIR")
    check_writable(tmp_path / "new/er", "--results", "give --results DIR")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]
