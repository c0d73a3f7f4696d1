import os
import subprocess
import sys

import optuna
import pytest

from prune_lab.errors import BadInput
from prune_lab.sweep.search.storage import connect, opened

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
    with pytest.raises(BadInput, match=r"//me:\*\*\*@host/db cannot be opened") as refused:
        connect("nosuchbase://me:secret@host/db", tmp_path)
    assert "secret" not in str(refused.value)
    missing = os.path.join(tmp_path, "nowhere", "a.db")
    with pytest.raises(BadInput, match="cannot be opened"):
        connect(f"sqlite:///{missing}", tmp_path)
