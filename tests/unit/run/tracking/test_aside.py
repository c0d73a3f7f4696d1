"""What works aside does so in order, tells what went wrong, and outlives its caller only to end well."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prune_lab.errors import BadInput
from prune_lab.run.tracking.aside import Aside

SERVED = """
import os
from pathlib import Path
from prune_lab.errors import BadInput

class Notes:
    def note(self, path, text):
        with Path(path).open("a") as file:
            file.write(text)

    def pid(self, path):
        self.note(path, str(os.getpid()))

    def refuse(self):
        raise BadInput("no")

    def fail(self):
        raise ZeroDivisionError("far away")

    def close(self):
        self.note("closed", "closed")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "served.py").write_text(SERVED)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def aside(folder) -> Iterator[Aside]:
    made = Aside("served:Notes")
    yield made
    made.close()


def comes(path: Path, text: str) -> bool:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if path.is_file() and path.read_text() == text:
            return True
        time.sleep(0.02)
    return False


def test_calls_are_done_in_order_by_another_process(aside, folder):
    for number in range(5):
        aside.call("note", folder / "notes", f"{number} ")
    aside.call("pid", folder / "pid")
    aside.wait()
    assert (folder / "notes").read_text() == "0 1 2 3 4 "
    assert int((folder / "pid").read_text()) != os.getpid()


def test_what_a_call_raises_is_raised_when_it_is_known_and_others_go_on(aside, folder):
    aside.call("refuse")
    with pytest.raises(BadInput, match="no"):
        aside.wait()
    aside.call("fail")
    with pytest.raises(RuntimeError, match="ZeroDivisionError: far away"):
        for number in range(1000):  # with the next call, or at the end
            aside.call("note", folder / f"notes{number}", "after")
        aside.wait()
    aside.call("note", folder / "notes", "after")
    aside.wait()
    assert (folder / "notes").read_text() == "after"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_what_is_sent_to_a_whole_job_does_not_end_it(aside, folder, number):
    aside.call("pid", folder / "pid")
    aside.wait()
    os.kill(int((folder / "pid").read_text()), number)
    aside.call("note", folder / "notes", "still here")
    aside.wait()
    assert (folder / "notes").read_text() == "still here"


def test_a_process_that_died_is_told_of(aside, folder):
    aside.call("pid", folder / "pid")
    aside.wait()
    os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
    with pytest.raises(RuntimeError, match="served:Notes has ended"):
        aside.call("note", folder / "notes", "lost")
        aside.wait()
    assert not aside.alive


@pytest.mark.parametrize("how", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)", "sys.exit()"])
def test_it_ends_with_its_caller_and_does_first_what_it_was_asked(folder, how):
    script = (
        "import os, signal, sys; from prune_lab.run.tracking.aside import Aside; aside = Aside('served:Notes');"
        f"aside.call('note', 'notes', 'done, '); aside.call('note', 'notes', 'and more'); {how}"
    )
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=False, timeout=60)
    assert comes(folder / "closed", "closed")
    assert (folder / "notes").read_text() == "done, and more"
