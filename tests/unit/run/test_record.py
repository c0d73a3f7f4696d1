"""A record is read in one place; whatever lies there instead gives one error, and nobody waits or runs out of stack."""

import json
import math
import os
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from prune_lab.run.record import MOST_BYTES, MOST_DEPTH, Unreadable, read_record

SECTIONS = ("config", "choices", "metrics", "metric_info", "protocol")


def test_what_readers_rely_on_is_there(tmp_path):
    metrics = {"a/x": math.inf, "a/y": "1", "a/z": True, "a/w": 1, "a/v": 10**400}
    (tmp_path / "record.json").write_text(json.dumps({"status": "finished", "metrics": metrics, "key": "k"}))
    record = read_record(tmp_path)
    assert record == {"status": "finished", "key": "k", "metrics": {"a/x": math.inf, "a/w": 1}} | {
        name: {} for name in SECTIONS if name != "metrics"
    }


def test_halves_of_surrogate_pairs_are_replaced(tmp_path):
    (tmp_path / "record.json").write_text(
        '{"status": "failed", "error": "\\uD800", "protocol": {"\\udfff": ["\\ud83d\\ude00"]}}'
    )
    record = read_record(tmp_path)
    assert (record["error"], record["protocol"]) == ("?", {"?": ["😀"]})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not in UTF-8"),
        (b"[1]", "holds a list"),
        (b"[" * 100_000, "not JSON"),
        (b'{"status": "finished", "protocol": ' + b'{"a": ' * MOST_DEPTH + b"1" + b"}" * (MOST_DEPTH + 1), "deep"),
        (b'{"n": ' + b"1" * 5000 + b"}", "not JSON"),
        (b"{}", "no status"),
        (b'{"status": 3}', "no status"),
        *[(b'{"status": "finished", "%s": 1}' % name.encode(), f"its {name} is not an object") for name in SECTIONS],
    ],
)
def test_damaged_records_say_what_is_wrong(tmp_path, content, reason):
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(Unreadable, match=reason):
        read_record(tmp_path)


def place(path, kind):
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop of links":
        path.symlink_to(path.name)
    elif kind == "huge file":
        with path.open("wb") as file:
            file.truncate(MOST_BYTES + 1)


@pytest.mark.skipif(os.name != "posix", reason="special files")
@pytest.mark.parametrize("kind", ["FIFO", "folder", "device", "loop of links", "huge file", "nothing"])
def test_what_is_no_file_is_not_waited_for(tmp_path, kind):
    place(tmp_path / "record.json", kind)
    with pytest.raises((Unreadable, OSError)):
        read_record(tmp_path)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="sockets in the file system")
def test_a_socket_is_no_record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # its path has to be short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("record.json")
        with pytest.raises((Unreadable, OSError)):
            read_record(tmp_path)


PLAIN = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(some.characters(), max_size=8),
    lambda part: some.lists(part, max_size=3) | some.dictionaries(some.text(max_size=8), part, max_size=3),
    max_leaves=8,
)
RECORDS = PLAIN | some.fixed_dictionaries({"status": some.text(max_size=8)}, optional=dict.fromkeys(SECTIONS, PLAIN))


@settings(max_examples=200, deadline=None)
@given(RECORDS, some.integers(0, 40))
def test_any_record_is_read_or_refused(tmp_path_factory, record, cut):
    folder = tmp_path_factory.getbasetemp() / "any record"
    folder.mkdir(exist_ok=True)
    text = json.dumps(record)
    (folder / "record.json").write_text(text[: len(text) - cut])
    try:
        found = read_record(folder)
    except Unreadable as error:
        assert str(error).isprintable()
        return
    assert isinstance(found["status"], str) and all(isinstance(found[name], dict) for name in SECTIONS)
    json.dumps(found, ensure_ascii=False).encode()
