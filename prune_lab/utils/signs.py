"""Signs of life by which the processes of one run notice that another one is gone, and which.

Backends notice it late or never, and do not say which process it is. So a thread of each leaves a sign at the store
where they have met, and looks for those of the others.
"""

import os
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command starts without torch
    from torch._C._distributed_c10d import Store

BEAT = 2.0  # seconds between two signs of life
SILENCE = 40.0  # seconds without one after which a process is lost: it may be held up by a call into a library
LEFT = "left"
GO_ON = "the same command goes on where this one ended"


def here() -> str:
    """Names this process."""
    return f"{socket.gethostname()}, process {os.getpid()}"


class Signs:
    """Signs of life of all processes, by a connection of its own: a process may be waiting on the other one."""

    def __init__(self, rank: int, count: int, store: "Store"):
        self._rank, self._count, self._store = rank, count, store
        self._ended = threading.Event()
        self._seen: dict[int, tuple[str, float]] = {}  # of the others: the sign, and when it changed

    def begin(self) -> None:
        """Starts to give signs, and to look for those of the others."""
        self._store.set(f"who/{self._rank}", here())
        self._store.set(f"sign/{self._rank}", "0")
        threading.Thread(target=self._keep_watch, name="signs of life", daemon=True).start()

    def end(self) -> None:
        """Stops both, and tells the others that this process has left."""
        self._ended.set()
        with suppress(RuntimeError):
            self._store.set(f"sign/{self._rank}", LEFT)

    def look(self, patience: float) -> str | None:
        """Says which process has failed, or gives no sign of life for so many seconds; ``None``: none."""
        start = time.monotonic()
        while time.monotonic() - start < patience + BEAT:
            found = self._found(since=patience)
            if found:
                return found
            time.sleep(BEAT / 8)
        return None

    def _keep_watch(self) -> None:
        """Ends the process soon after another one is lost, if it has not ended by itself."""
        number = 0
        while not self._ended.wait(BEAT):
            number += 1
            with suppress(RuntimeError):
                self._store.set(f"sign/{self._rank}", str(number))
            found = self._found(since=SILENCE)
            if found and not self._ended.wait(BEAT * 4):  # a computation of all processes fails by itself
                sys.stderr.write(f"prune-lab: {found}; {GO_ON}\n")
                sys.stderr.flush()
                os._exit(1)

    def _found(self, since: float) -> str | None:
        now = time.monotonic()
        for rank in range(self._count):
            if rank == self._rank:
                continue
            try:
                if self._store.check([f"failed/{rank}"]):
                    return f"process {rank} of {self._count} failed: {self._store.get(f'failed/{rank}').decode()}"
                sign = self._store.get(f"sign/{rank}").decode() if self._store.check([f"sign/{rank}"]) else ""
            except RuntimeError:  # who holds the store is gone
                sign = self._seen.get(rank, ("", now))[0]
            if sign in ("", LEFT):
                continue
            if self._seen.get(rank, (None, now))[0] != sign:
                self._seen[rank] = sign, now
            elif now - self._seen[rank][1] > since:
                return f"process {rank} of {self._count}{self._who(rank)} is gone: no sign of life for {since:g} s"
        return None

    def _who(self, rank: int) -> str:
        with suppress(RuntimeError):
            return f" ({self._store.get(f'who/{rank}').decode()})"
        return ""
