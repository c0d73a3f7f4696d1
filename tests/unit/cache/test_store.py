"""The store: whole entries or none, bounded, checked, and safe under many writers."""

import errno
import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from prune_lab.cache.store import NoRoom, Store, open_store
from prune_lab.errors import BadInput


def key(name: object) -> str:
    return sha256(str(name).encode()).hexdigest()


def filled(content: bytes):
    return lambda folder: (folder / "data").write_bytes(content)


def read(folder: Path) -> bytes:
    return (folder / "data").read_bytes()


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store", 1000)


def leftovers(store: Store) -> list[Path]:
    return [path for path in store.folder.iterdir() if path.name.startswith(".")]


def test_what_was_kept_is_there(store):
    assert store.load(key(1), read) is None
    store.keep(key(1), filled(b"one"))
    store.keep(key(1), filled(b"never"))  # the key says that it is the same
    assert store.load(key(1), read) == b"one"
    assert store.load(key(2), read) is None
    assert not leftovers(store)


@given(
    st.lists(st.tuples(st.sampled_from(["keep", "load"]), st.integers(0, 5), st.integers(1, 600)), max_size=25),
)
@settings(deadline=None, max_examples=30)
def test_it_is_as_a_dictionary_that_forgets_what_was_not_used_for_longest(tmp_path_factory, steps):
    store = Store(tmp_path_factory.mktemp("store"), 1000)
    model: dict[str, int] = {}  # bytes by key, the least recently used first
    for number, (what, name, size) in enumerate(steps):
        if what == "keep" and key(name) not in model:
            store.keep(key(name), filled(b"x" * size))
            model[key(name)] = size
            while sum(model.values()) > 1000:
                del model[next(iter(model))]
        elif what == "load":
            found = store.load(key(name), read)
            assert (found is None) == (key(name) not in model)
            if found is not None:
                model[key(name)] = model.pop(key(name))
        for entry in store.folder.glob(f"??/{key(name)}/entry.json"):  # clocks of file systems are coarse
            if what == "load" or entry.stat().st_mtime > 10**6:
                os.utime(entry, (number, number))
        assert store.size() == sum(model.values()) <= 1000


def test_a_result_is_made_once_unless_nothing_is_to_be_kept(tmp_path, store):
    made = []

    def obtain(store: Store) -> bytes:
        return store.obtain(
            key(1),
            "result",
            read=read,
            make=lambda: made.append(1) or b"one",
            write=lambda folder, content: (folder / "data").write_bytes(content),
        )

    assert [obtain(store) for _ in range(3)] == [b"one"] * 3 and len(made) == 1
    none = Store(tmp_path / "none", 0)
    assert [obtain(none) for _ in range(2)] == [b"one"] * 2 and len(made) == 3
    assert not none.folder.exists()


def test_what_does_not_fit_is_not_kept(store, caplog):
    store.keep(key(1), filled(b"x" * 900))
    with caplog.at_level("INFO"):
        store.keep(key(2), filled(b"x" * 1001))
        store.keep(key(3), lambda folder: pytest.fail("written for nothing"), expected=5000)
    assert caplog.text.count("more than the store may hold") == 2
    assert store.load(key(1), read) and store.load(key(2), read) is None


@pytest.mark.parametrize("damaged", [False, True])
def test_an_entry_of_an_earlier_version_is_checked_by_its_own_checksum(store, damaged):
    store.keep(key(1), filled(b"one"))
    [manifest] = store.folder.glob("??/*/entry.json")
    files = {"data": {"bytes": 3, "sha256": sha256(b"two" if damaged else b"one").hexdigest()}}
    manifest.write_text(json.dumps({"bytes": 3, "files": files}))
    assert store.load(key(1), read) == (None if damaged else b"one")


@pytest.mark.parametrize("damage", ["changed", "shorter", "missing", "manifest", "no manifest", "other JSON"])
def test_a_damaged_entry_is_set_aside_reported_and_made_again(store, damage, caplog):
    store.keep(key(1), filled(b"one"))
    [file] = store.folder.glob("??/*/data")
    if damage in ("changed", "shorter"):
        file.write_bytes(b"own" if damage == "changed" else b"on")
    elif damage == "missing":
        file.unlink()
    elif damage == "no manifest":
        (file.parent / "entry.json").unlink()
    else:
        (file.parent / "entry.json").write_text('{"bytes"' if damage == "manifest" else "[]")
    assert store.load(key(1), read) is None
    assert "damaged" in caplog.text
    assert len(list((store.folder / "damaged").iterdir())) == 1
    store.keep(key(1), filled(b"one"))
    assert store.load(key(1), read) == b"one"


def test_entries_that_were_set_aside_go_first(store):
    store.keep(key(1), filled(b"1" * 400))
    store.keep(key(2), filled(b"2" * 400))
    next(store.folder.glob(f"??/{key(2)}/data")).write_bytes(b"")
    assert store.load(key(2), read) is None
    next(store.folder.glob("damaged/*/data")).write_bytes(b"2" * 400)
    store.keep(key(3), filled(b"3" * 500))
    assert store.load(key(1), read) and store.load(key(3), read)
    assert not list((store.folder / "damaged").iterdir())


def test_a_reader_that_finds_no_sense_in_an_entry_sets_it_aside(store, caplog):
    store.keep(key(1), filled(b"[]"))
    assert store.load(key(1), lambda folder: json.loads(read(folder))["metrics"]) is None
    assert "damaged" in caplog.text


def test_a_failure_while_an_entry_is_filled_leaves_nothing(store, caplog):
    def fails(folder: Path) -> None:
        (folder / "data").write_bytes(b"half")
        raise OSError("disk full")

    store.keep(key(1), fails)
    assert "disk full" in caplog.text
    assert not leftovers(store) and store.load(key(1), read) is None


def test_other_failures_are_failures(store):
    with pytest.raises(ZeroDivisionError):
        store.keep(key(1), lambda folder: 1 / 0)
    assert not leftovers(store)


def test_a_real_disk_that_takes_no_more_is_a_warning(tmp_path):
    """A limit on the size of files fails as a full disk does, below all libraries."""
    code = (
        "import resource, sys, torch; from pathlib import Path; from safetensors.torch import save_file\n"
        "from prune_lab.cache.store import Store\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "store = Store(Path(sys.argv[1]), 10**9)\n"
        "store.keep('ab', lambda folder: save_file({'x': torch.zeros(10_000)}, folder / 'x.safetensors'))\n"
        "store.keep('cd', lambda folder: (folder / 'x').write_bytes(bytes(20_000)))\n"
        "store.keep('ef', lambda folder: torch.save(torch.zeros(10_000), folder / 'x.pt'))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("not kept for other runs") == 3
    assert not leftovers(Store(tmp_path, 1000))


def test_other_users_may_read_what_the_umask_allows(store):
    before = os.umask(0o027)
    try:
        store.keep(key(1), lambda folder: save_file({"x": torch.zeros(3)}, folder / "x.safetensors"))
    finally:
        os.umask(before)
    [file] = store.folder.glob("??/*/x.safetensors")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640 and stat.S_IMODE(file.parent.stat().st_mode) == 0o750


@pytest.mark.parametrize("what", ["manifest", "file", "reading", "touching"])
def test_what_cannot_be_read_is_not_damaged(store, monkeypatch, caplog, what):
    """Another user's: it stays where it is."""
    store.keep(key(1), filled(b"one"))
    denied, name = OSError(errno.EACCES, "Permission denied"), {"manifest": "read_text", "file": "open"}.get(what)

    def deny(*_: object, **__: object) -> None:
        raise denied

    with monkeypatch.context() as patched:
        if name:
            patched.setattr(Path, name, deny)
        elif what == "touching":
            patched.setattr("os.utime", deny)
        found = store.load(key(1), deny if what == "reading" else read)
    assert found == (b"one" if what == "touching" else None)
    assert "damaged" not in caplog.text and ("cannot be read" in caplog.text) == (what != "touching")
    assert store.load(key(1), read) == b"one"


def test_what_a_dead_process_left_goes_after_a_day(store):
    store.keep(key(1), filled(b"one"))
    old, new = store.folder / ".new-old", store.folder / ".new-new"
    for left in (old, new):
        left.mkdir()
    os.utime(old, (1, 1))
    store.keep(key(2), filled(b"two"))
    assert leftovers(store) == [new]


def _write_and_read(folder: Path, number: int) -> list[str]:
    """Many times, checks that what is read is what belongs to the key; returns what went wrong."""
    store, wrong = Store(folder, 4000), []
    for step in range(60):
        name = (number * 7 + step * 3) % 11
        content = str(name).encode() * 500
        found = store.load(key(name), read)
        if found is None:
            store.keep(key(name), filled(content))
        elif found != content:
            wrong.append(f"{name}: {found[:20]!r}")
        size = store.size()
        if size > 4000:
            wrong.append(f"{size} bytes")
    return wrong


def test_processes_do_not_get_into_each_others_way(tmp_path):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        wrong = pool.starmap(_write_and_read, [(tmp_path / "store", number) for number in range(3)])
    assert wrong == [[], [], []]
    assert not leftovers(Store(tmp_path / "store", 4000))
    assert not (tmp_path / "store/damaged").exists()


def test_a_killed_writer_leaves_no_entry_and_no_lock(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from prune_lab.cache.store import Store\n"
        "store = Store(Path(sys.argv[1]), 1000)\n"
        "def fill(folder):\n"
        "    (folder / 'data').write_bytes(b'half'); print('writing', flush=True); time.sleep(60)\n"
        "with store.claimed(sys.argv[2], 'thing'):\n"
        "    store.keep(sys.argv[2], fill)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), key(1)], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    store = Store(tmp_path, 1000)
    assert store.load(key(1), read) is None
    with store.claimed(key(1), "thing"):  # nobody waits for the dead
        store.keep(key(1), filled(b"whole"))
    assert store.load(key(1), read) == b"whole"


def test_a_folder_for_others_is_filled_once_and_what_a_killed_process_left_of_it_goes(store):
    store.folder.mkdir()
    own, others = (store.folder / f".new-{key(name)[:16]}-left" for name in (1, 2))
    own.mkdir(), others.mkdir()
    folder = store.obtain_folder(key(1), "thing", filled(b"one"), expected=10)
    assert (folder / "data").read_bytes() == b"one"
    assert leftovers(store) == [others]  # somebody may be at work there
    assert store.has(key(1)) and not store.has(key(2))
    assert store.obtain_folder(key(1), "thing", filled(b"never"), expected=10**9) == folder
    (folder / "data").write_bytes(b"two")  # damaged
    assert (store.obtain_folder(key(1), "thing", filled(b"one"), expected=10) / "data").read_bytes() == b"one"


def test_a_folder_for_others_that_does_not_fit_is_told(store, monkeypatch):
    with pytest.raises(NoRoom, match=r"it takes 2e-06 GB, and the store may hold 1e-06; set PRUNE_LAB_CACHE_GB"):
        store.obtain_folder(key(1), "thing", filled(b"one"), expected=2000)
    with pytest.raises(NoRoom, match="it is not to be found"):
        store.obtain_folder(key(1), "thing", filled(b"x" * 2000), expected=10)

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(NoRoom, match=r"it cannot be written to .*: No space left on device; make room there"):
        store.obtain_folder(key(1), "thing", full, expected=10)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=5))
    with pytest.raises(NoRoom, match=r"it takes 1e-08 GB, and there is room for 5e-09 at"):
        store.obtain_folder(key(1), "thing", filled(b"one"), expected=10)
    assert not leftovers(store) and not store.has(key(1))


def test_the_environment_says_how_large_it_may_be(monkeypatch, tmp_path):
    monkeypatch.setenv("PRUNE_LAB_CACHE", str(tmp_path))
    assert open_store() == Store(tmp_path / "store", 20 * 10**9)
    monkeypatch.setenv("PRUNE_LAB_CACHE_GB", "0.5")
    assert open_store().limit == 500_000_000
    monkeypatch.setenv("PRUNE_LAB_CACHE_GB", "0")
    open_store().keep(key(1), lambda folder: pytest.fail("written for nothing"))
    for wrong in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv("PRUNE_LAB_CACHE_GB", wrong)
        with pytest.raises(BadInput, match="PRUNE_LAB_CACHE_GB"):
            open_store()
