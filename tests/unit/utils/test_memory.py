"""Memory that may still be taken is the least of what the system and a container's limit say."""

import gc

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
