"""Memory that may still be taken is the least of what the system and a container's limit say."""

import gc
import os
import platform
import subprocess
import sys

import pytest

from prune_lab.utils import memory


@pytest.fixture
def told(tmp_path, monkeypatch):
    """``told(system, limit)`` says what the system has, and what a container may take, which takes 100."""

    def tell(system, limit):
        (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {system} kB\n" if system else "")
        for name, text in {
            "max": limit,
            "now": "100",
            "memory.stat": "anon 70\ninactive_file 20\nactive_file 10\n",
        }.items():
            (tmp_path / name).write_text(str(text))
        monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
        monkeypatch.setattr(memory, "_GROUPS", ((tmp_path, "max", "now"), (tmp_path / "none", "max", "now")))
        return memory.available_memory()

    return tell


@pytest.mark.parametrize(
    ("system", "limit", "available"), [(5, "max", 5120), (5, 1000, 930), (5, 10**9, 5120), (None, "max", None)]
)
def test_the_least_counts_and_files_kept_in_memory_do_not(told, system, limit, available):
    assert told(system, limit) == available


@pytest.mark.parametrize("looks", [True, False])
def test_python_looks_for_cycles_afterwards_as_before(looks):
    (gc.enable if looks else gc.disable)()
    try:
        with pytest.raises(ValueError, match="x"), memory.growing():
            assert not gc.isenabled()
            raise ValueError("x")
        assert gc.isenabled() == looks
    finally:
        gc.enable()


FAULTS = """
import ctypes, resource, sys
from prune_lab.utils.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def use(times):
    for _ in range(times):
        taken = [libc.malloc(30 << 20) for _ in range(6)]
        for each in taken:
            libc.memset(each, 1, 30 << 20)
        for each in taken:
            libc.free(each)
use(3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use(5)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries have no such setting")
def test_freed_memory_is_taken_again_without_page_faults():
    run = subprocess.run([sys.executable, "-c", FAULTS, "keep"], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 10_000  # in new pages each of the 30 would cost 7,680


def test_huge_pages_are_asked_for_unless_the_user_decided():
    command = [sys.executable, "-c", "import os, prune_lab; print(os.environ['THP_MEM_ALLOC_ENABLE'])"]
    for environment, wanted in (({}, "1"), ({"THP_MEM_ALLOC_ENABLE": "0"}, "0")):
        plain = {key: value for key, value in os.environ.items() if key != "THP_MEM_ALLOC_ENABLE"}
        run = subprocess.run(command, env=plain | environment, capture_output=True, text=True, check=True)
        assert run.stdout.strip() == wanted
