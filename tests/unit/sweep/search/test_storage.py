import os
import sqlite3
import subprocess
import sys

import optuna
import pytest

from prune_lab.errors import BadInput
from prune_lab.sweep.search.storage import connect, opened
from prune_lab.utils.secrets import redacted

HOLD = """
import sys, time
from pathlib import Path
from prune_lab.sweep.search.storage import opened
with opened("a.journal", Path(sys.argv[1])):
    print("open", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone_however_it_ends(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "open\n"
        with (
            pytest.raises(BadInput, match=r"searched by another process.*hydra\.sweeper\.study"),
            opened("a.journal", tmp_path),
        ):
            pass
        process.kill()
    with opened("a.journal", tmp_path) as storage:
        assert storage.get_all_studies() == []


def test_a_line_that_was_cut_off_is_dropped(tmp_path, caplog):
    journal = tmp_path / "deep" / "a.journal"
    with opened("deep/a.journal", tmp_path) as storage:
        optuna.create_study(study_name="one", storage=storage)
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":0,"wor')
    with opened("deep/a.journal", tmp_path) as storage:
        assert "in the middle of a line" in caplog.text
        optuna.create_study(study_name="two", storage=storage)
    with opened("deep/a.journal", tmp_path) as storage:
        assert sorted(study.study_name for study in storage.get_all_studies()) == ["one", "two"]


def test_a_journal_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"), opened("file/a.journal", tmp_path):
        pass


def test_a_database_that_cannot_be_opened_is_told_without_its_password(tmp_path):
    with pytest.raises(BadInput, match="cannot be opened") as refused:
        connect("nosuchbase://me:hunter2x@host/db", tmp_path)
    assert "//me:***@host/db" in redacted(str(refused.value))  # as the command prints it
    missing = os.path.join(tmp_path, "nowhere", "a.db")
    with pytest.raises(BadInput, match="cannot be opened"):
        connect(f"sqlite:///{missing}", tmp_path)


FOREIGN = {
    "text without a last line": b"dear diary,\ntoday",
    "one line": b"precious",
    "a blank": b" ",
    "lines of JSON": b'{"a": 1}\n{"b": 2',
    "a table": b"PAR1\x00\x01\n\xff\xfe",
    "damaged inside": b'{"op_code":0,"worker_id":"x"}\nnonsense\n{"op',
    "deep": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("scheme", ["", "sqlite:///"])
def test_a_file_of_something_else_is_left_as_it_is(tmp_path, content, scheme):
    path = tmp_path / "precious"
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    with (
        pytest.raises(BadInput, match=r"precious is not used: .*nothing was changed"),
        opened(f"{scheme}{path}", tmp_path),
    ):
        pass
    assert path.read_bytes() == content and path.stat().st_mtime_ns == 1
    assert [each.name for each in tmp_path.iterdir()] == ["precious"]


def test_so_are_a_database_of_something_else_and_what_is_no_file(tmp_path):
    path = tmp_path / "cookies.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE cookies (value TEXT)")
    database.close()
    content = path.read_bytes()
    for storage in (f"sqlite:///{path}", str(path)):
        with pytest.raises(BadInput, match="is not used"), opened(storage, tmp_path):
            pass
    assert path.read_bytes() == content
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "."):
        with pytest.raises(BadInput, match="it is no file"), opened(name, tmp_path):
            pass


def test_studies_go_on_in_their_files(tmp_path):
    for storage in (f"sqlite:///{tmp_path}/a.db", "a.journal"):
        for name in ("one", "two"):
            with opened(storage, tmp_path) as opens:
                optuna.create_study(study_name=name, storage=opens)
        with opened(storage, tmp_path) as opens:
            assert len(opens.get_all_studies()) == 2


def test_a_first_line_that_was_cut_off(tmp_path):
    (tmp_path / "a.journal").write_bytes(b'{"op_code":0,"worker_id":"1')
    with opened("a.journal", tmp_path) as storage:
        assert storage.get_all_studies() == []
