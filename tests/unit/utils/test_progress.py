import io
import logging
import os
import pty
import subprocess
import sys

import pytest

from prune_lab.utils.progress import track

IN_A_TERMINAL = """
import logging, sys
from prune_lab.utils.progress import track
logging.basicConfig(stream=sys.stdout, format="%(message)s")
stream = sys.stderr
for item in track(range(3), 3, "outer"):
    for inner in track(range(2), 2, "inner"):
        pass
    logging.warning("line of %s", item)
assert sys.stderr is stream
assert logging.getLogger().handlers[0].stream is sys.stdout
"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def in_a_terminal(script: str, **environment: str) -> str:
    parent, child = pty.openpty()
    with os.fdopen(parent, "rb", buffering=0) as reader:
        variables = {**os.environ, "COLUMNS": "80", "TERM": "xterm", **environment}
        process = subprocess.Popen([sys.executable, "-c", script], stdout=child, stderr=child, env=variables)
        os.close(child)
        seen = b""
        while True:
            try:
                piece = reader.read(4096)
            except OSError:  # how Linux says that the other side has closed
                break
            if not piece:
                break
            seen += piece
        assert process.wait() == 0, seen.decode()
    return seen.decode()


def test_a_terminal_shows_one_bar_and_whole_log_lines():
    shown = in_a_terminal(IN_A_TERMINAL)
    assert "outer" in shown and "3/3" in shown
    assert "inner" not in shown  # bars do not nest
    for item in range(3):
        assert f"line of {item}\r\n" in shown


def test_a_dumb_terminal_shows_log_lines_only():
    assert in_a_terminal(IN_A_TERMINAL, TERM="dumb") == "line of 0\r\nline of 1\r\nline of 2\r\n"


@pytest.mark.parametrize("total", [3, None])
def test_a_file_gets_the_items_and_no_bar(monkeypatch, total):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(track([5, 6, 7], total, "work")) == [5, 6, 7]
    assert stream.getvalue() == ""


def test_no_standard_error_is_no_obstacle(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert list(track([1], 1, "work")) == [1]
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    assert list(track([1], 1, "work")) == [1]


def test_an_error_inside_the_loop_gives_the_streams_back(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    handler = logging.StreamHandler(Terminal())
    own = handler.stream
    logging.getLogger().addHandler(handler)
    try:
        with pytest.raises(KeyError):
            for item in track([1, 2], 2, "work"):
                assert handler.stream is not own
                raise KeyError(item)
        assert handler.stream is own
        assert sys.stderr is stream
    finally:
        logging.getLogger().removeHandler(handler)
