"""Runs a command in a forked process, which has the libraries loaded already, within bounds of time and memory."""

import contextlib
import gc
import importlib
import os
import pkgutil
import resource
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GB = 2**30
MEMORY, FILE_SIZE = 6 * GB, GB // 2


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: the exit status; below 0 the signal that ended it; None: it was at work when its time was up.
        out: what it wrote to standard output.
        err: what it wrote to standard error.
        seconds: by the clock.
    """

    status: int | None
    out: str
    err: str
    seconds: float


def preload() -> None:
    """Imports what commands import, so that a fork has it."""
    import prune_lab

    for name in (
        "torch",
        "transformers",
        "datasets",
        "accelerate",
        "optuna",
        "pyarrow.parquet",
        "sqlalchemy",
        "sqlite3",
    ):
        importlib.import_module(name)
    for module in pkgutil.walk_packages(prune_lab.__path__, "prune_lab."):
        if not module.name.endswith(("__main__", "harness_model", ".plot", ".plot_front")):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)
    importlib.import_module("prune_lab.__main__")
    gc.collect()
    gc.freeze()


def run(
    program: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], *, seconds: float
) -> Ended:
    """Runs one command.

    Args:
        program: see `prune_lab`'s scripts.
        arguments: of the command.
        folder: where it works; its output goes beside it.
        environment: variables besides those of this process.
        seconds: after which it is killed.
    """
    files = [folder.with_name(f"{folder.name}.{name}") for name in ("out", "err")]
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _be(program, arguments, folder, environment, files)
    status: int | None = None
    while time.monotonic() - start < seconds:
        ended, code = os.waitpid(child, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(code)
            break
        time.sleep(0.01)
    taken = time.monotonic() - start
    with contextlib.suppress(ProcessLookupError):  # what it has started goes with it
        os.killpg(child, signal.SIGKILL)
    if status is None:
        os.waitpid(child, 0)
    out, err = (path.read_text("utf-8", "replace")[-200_000:] for path in files)
    return Ended(status, out, err, taken)


def in_a_fork(function: object, *arguments: object) -> None:
    """Calls a function where its threads and settings are gone afterwards."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function(*arguments)  # type: ignore[operator]
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the preparation failed")


def _be(
    program: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], files: Sequence[Path]
) -> None:
    """Is the process of the command, and never returns."""
    status = 1
    try:
        os.setsid()
        os.chdir(folder)
        for number, name in enumerate((os.devnull, *files)):
            opened = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC * bool(number), 0o644)
            os.dup2(opened, number)
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(number, mode, encoding="utf-8", errors="surrogateescape" if mode == "r" else "backslashreplace")
            for number, mode in ((0, "r"), (1, "w"), (2, "w"))
        )
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY + pages * resource.getpagesize(),) * 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.environ.update(
            {"HOME": str(folder), "PRUNE_LAB_CACHE": str(folder / "cache"), "COLUMNS": "120"} | dict(environment)
        )
        sys.argv = [program, *arguments]
        status = _status_of(program)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _status_of(program: str) -> int:
    place = {"prune-lab": "__main__", "prune-lab-report": "report.page.command", "prune-lab-table": "report.table"}
    try:
        importlib.import_module(f"prune_lab.{place[program]}").main()
    except SystemExit as ended:
        if isinstance(ended.code, int) or ended.code is None:
            return ended.code or 0
        sys.stderr.write(f"{ended.code}\n")
        return 1
    return 0
