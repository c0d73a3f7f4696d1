"""An object in a process of its own: its work takes none of the caller's time, and touches nothing of the caller's."""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from prune_lab.errors import BadInput

_LEFT_TO_CALLER = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # what is sent to whole jobs


class Aside:
    """Calls an object's methods in another process, one after another, without waiting for them.

    The other process ends with this one, however that ends; the object's ``close`` is called then.

    Args:
        target: ``module:class``, made there without arguments.
    """

    def __init__(self, target: str) -> None:
        self._target, self._pending = target, 0
        self._connection, theirs = Pipe()
        found = [str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, target, str(theirs.fileno())],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(found)},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()

    @property
    def alive(self) -> bool:
        """Whether the other process is there."""
        return self._process.poll() is None

    def call(self, method: str, *arguments: Any) -> None:
        """Has a method called; raises what an earlier one raised."""
        while self._pending and self._connection.poll():
            self._receive()
        try:
            self._connection.send((method, arguments))
        except OSError as error:
            raise self._ended() from error
        self._pending += 1

    def wait(self) -> None:
        """Waits until all calls have returned; raises then what the first of them raised that did not."""
        raised: list[Exception] = []
        while self._pending:
            try:
                self._receive()
            except Exception as error:
                raised.append(error)
        if raised:
            raise raised[0]

    def close(self) -> None:
        """Ends the other process, once it has done what it was asked for."""
        self._connection.close()
        self._process.wait()

    def _receive(self) -> None:
        try:
            raised = self._connection.recv()
        except (EOFError, OSError) as error:
            self._pending = 0
            raise self._ended() from error
        self._pending -= 1
        if raised is not None:
            raise raised

    def _ended(self) -> RuntimeError:
        self._process.kill()
        self._process.wait()
        return RuntimeError(f"the process of {self._target} has ended")


def _serve(target: str, connection: Connection) -> None:
    """Does what is asked for until the caller is gone."""
    for number in _LEFT_TO_CALLER:
        signal.signal(number, signal.SIG_IGN)
    module, _, name = target.partition(":")
    served = getattr(importlib.import_module(module), name)()
    while True:
        try:
            method, arguments = connection.recv()
        except (EOFError, OSError):
            break
        raised = _raised(served, method, arguments)
        with contextlib.suppress(OSError):  # the caller may be gone, and have asked for more before
            connection.send(raised)
    served.close()


def _raised(served: object, method: str, arguments: tuple[object, ...]) -> Exception | None:
    try:
        getattr(served, method)(*arguments)
    except BadInput as error:
        return error
    except Exception as error:  # of a kind that the caller may not have
        return RuntimeError(f"{type(error).__name__}: {error}")
    return None


if __name__ == "__main__":
    _serve(sys.argv[1], Connection(int(sys.argv[2])))
