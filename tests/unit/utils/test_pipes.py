"""A command whose output nobody reads any more ends without a word, and with the status of such programs."""

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from prune_lab.utils.pipes import READER_GONE, ends_with_its_reader

ROOT = Path(__file__).parents[3]
COMMANDS = re.findall(r'^(prune-lab[\w-]*) = "([\w.]+):(\w+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
SCRIPT = """
import os, sys
from prune_lab.utils.pipes import ends_with_its_reader

@ends_with_its_reader
def main():
    {}

main()
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of Python that writes into a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            [sys.executable, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120, check=False
        )
    finally:
        os.close(writer)


@pytest.mark.parametrize(
    "body",
    ["print('a line')", "print('x' * 10**6)", "print('a line'); sys.exit(3)", "print('a line', flush=True)"],
    ids=["at the end", "at once", "with a status of its own", "flushed"],
)
def test_nothing_is_said_where_nobody_reads(body):
    done = run("-c", SCRIPT.format(body))
    assert (done.returncode, done.stderr) == (READER_GONE, "")


def test_another_pipe_that_breaks_is_an_error():
    done = run("-c", SCRIPT.format("sys.stdout = open(os.devnull, 'w'); raise BrokenPipeError('of a server')"))
    assert done.returncode == 1 and "BrokenPipeError: of a server" in done.stderr


def test_what_a_command_returns_and_how_it_ends_stays(capsys):
    assert ends_with_its_reader(lambda: 5)() == 5
    with pytest.raises(SystemExit) as ended:
        ends_with_its_reader(sys.exit)(3)
    assert ended.value.code == 3
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError):  # not that of the output
        ends_with_its_reader(os.write)(writer, b"x")
    os.close(writer)


def test_all_commands_end_so():
    assert len(COMMANDS) >= 6
    for name, module, function in COMMANDS:
        assert hasattr(getattr(import_module(module), function), "__wrapped__"), name


@pytest.mark.parametrize("arguments", [["--help"], ["--shell-completion", "install=bash"]], ids=["help", "completion"])
def test_hydra_is_quiet_too(arguments):
    done = run("-m", "prune_lab", *arguments)
    assert (done.returncode, done.stderr) == (READER_GONE, "")
