"""How much memory a process may still take on the host, and when it looks for what it can give back."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_GROUPS = ((Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
           (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"))  # fmt: skip
_FILES = ("inactive_file", "active_file")  # what a group's usage counts, but the system gives back when asked
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def available_memory() -> int | None:
    """The bytes that can be had before the system swaps or kills; ``None`` where it does not say (outside Linux).

    In a container it is what the container may still take.
    """
    return min(_available(), default=None)


@contextmanager
def growing() -> Iterator[None]:
    """Python looks for no cycles inside: while modules are imported it finds none, and takes a quarter of the time."""
    looks = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if looks:
            gc.enable()


def keep_freed_memory() -> None:
    """Lets glibc keep up to 256 MiB of what is freed, for what is allocated next; does nothing with other libraries.

    Every operation of a forward pass allocates its output. Given back to the system in between, each page of it costs
    a fault and is cleared again: on a CPU a quarter of the time of passes in bfloat16. See also `prune_lab.__init__`.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # musl has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
        mallopt(_TRIM_THRESHOLD, 256 << 20)


def gigabytes(size: float) -> str:
    """Bytes for a message: ``12.3 GB``, of 10^9 bytes."""
    return f"{size / 1e9:,.3g} GB" if size < 1e12 else f"{size / 1e9:,.0f} GB"


def _available() -> Iterator[int]:
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        yield from (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError):
        pass
    for folder, limit, usage in _GROUPS:
        try:
            most, used = (int((folder / name).read_text()) for name in (limit, usage))
            counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            yield most - used + sum(int(counts.get(name, 0)) for name in _FILES)
        except (OSError, ValueError):  # no such group, or no limit ("max")
            continue
