"""The processes of one run as a group: they meet, agree on what they run, and notice when one of them is lost.

They meet at a store of torch's (``MASTER_ADDR``, ``MASTER_PORT``), which launchers name. What they compute together is
in `prune_lab.utils.collectives`, and how they notice that one is gone in `prune_lab.utils.signs`.
"""

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from prune_lab.errors import BadInput, RunFailed
from prune_lab.utils.processes import processes
from prune_lab.utils.signs import BEAT, GO_ON, Signs, here

if TYPE_CHECKING:  # the command starts without torch
    import torch
    from torch._C._distributed_c10d import Store

_ARRIVAL = 300.0  # seconds until all processes must have come: one may find its modules in no cache
_SETTLING = 3.0  # seconds in which the first process says what all others would say, too
_LIFE = timedelta(days=1)  # of a wait for the others in a computation: they may save a model meanwhile, or time one


@dataclass
class Group:
    """The processes of a run that have met.

    Attributes:
        rank: of this process, from 0.
        count: of processes.
        store: what they tell each other.
    """

    rank: int
    count: int
    store: "Store"
    _signs: "Signs"
    _runs: int = field(default=0, init=False)

    def agree(self, settings: dict[str, Any]) -> None:
        """Compares what the processes are about to run; to be called by all of them.

        Args:
            settings: plain JSON by name; what may differ is not in it.

        Raises:
            BadInput: one has other settings than the first one; the same in all processes.
        """
        self._runs += 1
        place = f"settings/{self._runs}"
        mine = json.dumps({"host": here(), "settings": settings}, sort_keys=True, default=str)
        self.store.set(f"{place}/{self.rank}", mine)
        found = [json.loads(self._of(rank, f"{place}/{rank}")) for rank in range(self.count)]
        for rank, theirs in enumerate(found):
            differing = _differences(found[0]["settings"], theirs["settings"])
            if differing:
                raise BadInput(
                    f"process {rank} of {self.count} ({theirs['host']}) does not run what process 0 "
                    f"({found[0]['host']}) runs: {'; '.join(differing)}; give all processes the same command, code, "
                    "packages and files"
                )

    def part(self) -> None:
        """Waits until all processes have got here: the one that holds the store must not end before the others."""
        place = f"parted/{self._runs}"
        self.store.set(f"{place}/{self.rank}", "")
        for rank in range(self.count):
            self._of(rank, f"{place}/{rank}", patience=None)

    def said_by_first(self, message: str) -> bool:
        """Tells the others by what message this process ends; returns whether the first one ends with the same."""
        with suppress(RuntimeError):  # the store is gone with the process that held it
            self.store.set(f"failed/{self.rank}", message)
            if self.rank > 0:
                self.store.wait(["failed/0"], timedelta(seconds=_SETTLING))
                return bool(self.store.get("failed/0").decode() == message)
        return False

    def loss(self, error: Exception) -> RunFailed:
        """What to tell the user after a computation of all processes has failed: which one is lost, and why.

        Args:
            error: of torch's backend.
        """
        unknown = f"the processes of this run lost each other ({str(error).splitlines()[0]})"
        return RunFailed(f"{self.lost() or unknown}; {GO_ON}")

    def lost(self) -> str | None:
        """Says which process has failed, or has stopped giving signs of life; ``None``: none has, after a while."""
        return self._signs.look(patience=4 * BEAT)

    def _of(self, rank: int, key: str, patience: float | None = _ARRIVAL) -> str:
        """What another process has left; waits for it."""
        start = time.monotonic()
        while not self.store.check([key]):
            if patience is not None and time.monotonic() - start > patience:
                raise RunFailed(
                    f"process {rank} of {self.count} has not come in {patience:g} s; see what it says itself"
                )
            time.sleep(0.05)
        return str(self.store.get(key).decode())


_group: Group | None = None


def current() -> Group | None:
    """The group of this process; ``None`` where it works alone, or has not met the others."""
    return _group


def meet() -> Group | None:
    """Meets the other processes of the run; returns at once where there are none, or they have met before.

    Raises:
        BadInput: nothing says where they meet.
        RunFailed: they cannot be reached.
    """
    global _group
    own = processes()
    if own.count == 1 or _group is not None:
        return _group
    address, port = (os.environ.get(name, "").strip() for name in ("MASTER_ADDR", "MASTER_PORT"))
    if not address or not port.isdigit():
        raise BadInput(
            f"{own.count} processes are to share this run (WORLD_SIZE), and MASTER_ADDR={address!r} MASTER_PORT="
            f"{port!r} do not say where they meet; start them with torchrun or accelerate launch, or set the name of "
            "the first process' machine and a free port there"
        )
    try:
        store, second = _store(address, int(port), own.rank, own.count), _store(address, int(port), -1, own.count)
    except (RuntimeError, ValueError) as error:
        raise RunFailed(
            f"process {own.rank} of {own.count} cannot meet the others at {address}:{port} "
            f"({str(error).splitlines()[0]}); see whether process 0 runs there, and whether the port is free"
        ) from error
    _group = Group(own.rank, own.count, store, Signs(own.rank, own.count, second))
    _group._signs.begin()
    return _group


def meet_at_launcher() -> Group | None:
    """Meets the others where the launcher holds the store, so that one of them says what all would say."""
    with suppress(BadInput, RunFailed):
        return meet() if _launcher_holds_store() else _group
    return None


def open_backend(device: "torch.device") -> None:
    """Makes the group ready to compute together: with gloo on the host, and NCCL among GPUs.

    Args:
        device: of this process.
    """
    if _group is None:
        return
    import torch
    from torch import distributed
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    if distributed.is_initialized():
        return
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    try:
        distributed.init_process_group(
            backend,
            store=PrefixStore("backend", _group.store),
            rank=_group.rank,
            world_size=_group.count,
            timeout=_LIFE,
        )
    except RuntimeError as error:
        raise _group.loss(error) from error


def leave() -> None:
    """Ends the membership, so that the others do not take this process for lost."""
    global _group
    group, _group = _group, None
    if group is None:
        return
    from torch import distributed

    if (
        distributed.is_initialized()
    ):  # which may wait for a process that is gone, and is ended by the signs of life then
        distributed.destroy_process_group()
    group._signs.end()


def _store(address: str, port: int, rank: int, count: int) -> "Store":
    """A connection to where the processes meet; the first one holds it, unless their launcher does."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    store = TCPStore(
        address,
        port,
        count,
        is_master=rank == 0 and not _launcher_holds_store(),
        timeout=timedelta(seconds=_ARRIVAL),
        wait_for_workers=False,
        multi_tenant=True,
    )
    return PrefixStore(f"prune_lab/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _launcher_holds_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _differences(first: dict[str, Any], other: dict[str, Any], place: str = "") -> list[str]:
    """Says by name what two settings do not have in common, the first few."""
    found: list[str] = []
    for name in sorted(first.keys() | other.keys()):
        here, there = first.get(name), other.get(name)
        if isinstance(here, dict) and isinstance(there, dict):
            found += _differences(cast("dict[str, Any]", here), cast("dict[str, Any]", there), f"{place}{name}.")
        elif here != there:
            found.append(f"{place}{name}={_short(there)} instead of {_short(here)}")
    return found[:5]


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
