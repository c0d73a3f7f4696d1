"""Whatever stands in a file of data, it is read or refused with a message; a few bytes fill no memory."""

import gzip
import io
import json
import lzma

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from prune_lab.data import limits, packed, sources
from prune_lab.data.arrays import Tokens
from prune_lab.data.documents import find_files, read_documents
from prune_lab.data.sources import FileText
from prune_lab.data.text import FileData
from prune_lab.errors import BadInput

ROWS = [{"text": "one \u00fc\ntwo", "n": number} for number in range(3)]


def bytes_of(write) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def arrow_stream(file) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
WHOLE = {
    "a.txt": "words \u00fc\n".encode() * 5,
    "a.jsonl": LINES,
    "a.json": json.dumps(ROWS).encode(),
    "a.csv": b'text,n\n"one, two",1\nthree,2\n',
    "a.parquet": bytes_of(lambda file: parquet.write_table(pa.Table.from_pylist(ROWS), file)),
    "a.arrow": bytes_of(arrow_stream),
    "a.jsonl.gz": gzip.compress(LINES, mtime=0),
    "a.jsonl.xz": lzma.compress(LINES),
    "a.npy": bytes_of(lambda file: np.save(file, np.arange(12).reshape(3, 4))),
}


@st.composite
def damaged(draw, whole):
    """A file with a few bytes changed, added or lost; or any bytes at all."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=200))
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content)))
        until = at + draw(st.integers(0, 8))
        content[at:until] = draw(st.one_of(st.binary(max_size=8), st.sampled_from([b"[" * 9000, b"9" * 5000, b"\0"])))
    return bytes(content)


@pytest.mark.parametrize("name", WHOLE)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path_factory, name, data):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(data.draw(damaged(WHOLE[name])))
    try:
        if name == "a.npy":
            given = Tokens(calibration=str(path), evaluation=str(path))
            loaded = given.load(None, vocab_size=12, seqlen_limit=64)
            assert loaded.calibration.max() < 12
        else:
            assert all(isinstance(text, str) for text in FileText(path=str(path)).read())
    except BadInput as error:
        assert len(str(error)) < 1000 and "Traceback" not in str(error)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": ' + b"[" * 10**5, r"line 1: the JSON is nested too deeply"),
        ("a.json", b"[" * 10**5, r"a\.json: the JSON is nested too deeply"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "line 1: a number of thousands of digits"),
        ("a.jsonl", b'{"body\\ud800": 1}', r"there is no key 'text'; the keys are body\\ud800$"),
        ("a.jsonl", json.dumps({"k" * 9 + str(i): 1 for i in range(9999)}).encode(), r"the keys are k.{,300}\.\.\.$"),
        ("a.csv", b'text\n"' + b"x" * 200_000 + b'"', "not valid CSV"),
    ],
)
def test_what_parsers_stumble_over_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=message) as raised:
        list(read_documents(tmp_path / name, "text", "file"))
    str(raised.value).encode()


@pytest.mark.parametrize("ending", [".gz", ".xz"])
def test_a_file_that_unpacks_without_end_is_given_up(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(packed, "FREE", 2**17)
    pack = {".gz": gzip.compress, ".xz": lzma.compress}[ending]
    for kind, content in {".txt": b"a " * 2**22, ".jsonl": b"[" * 2**23, ".csv": b"text\n" + b"\n" * 2**23}.items():
        path = tmp_path / f"a{kind}{ending}"
        path.write_bytes(pack(content))
        with pytest.raises(BadInput, match=r"unpacks to more than 100 times its size.* after [01] MiB"):
            list(read_documents(path, "text", "file"))


def test_a_text_for_which_there_is_no_memory_is_refused_before_it_is_tokenised(tmp_path, monkeypatch, words):
    (tmp_path / "a.txt").write_text("w1 " * 1000)
    given = FileData(calibration=str(tmp_path / "a.txt"), evaluation=str(tmp_path / "a.txt"), samples=2, seqlen=4)
    monkeypatch.setattr(limits, "available_memory", lambda: 100 * 2999)
    with pytest.raises(BadInput, match=r"FileData\.evaluation: the text has 3,00. characters; to tokenise it takes"):
        given.load(words, vocab_size=64, seqlen_limit=64)
    monkeypatch.setattr(sources, "_LOOK_EVERY", 1)
    with pytest.raises(BadInput, match=r"the text has 3,000 characters"):
        FileText(path=str(tmp_path / "a.txt")).read()
    monkeypatch.setattr(limits, "available_memory", lambda: None)
    given.load(words, vocab_size=64, seqlen_limit=64)


def test_samples_for_which_there_is_no_memory_are_refused_before_one_is_drawn(tmp_path, monkeypatch, words):
    monkeypatch.setattr(limits, "available_memory", lambda: 10**11)
    (tmp_path / "a.txt").write_text("w1 " * 100)
    given = FileData(calibration=str(tmp_path / "a.txt"), evaluation=str(tmp_path / "a.txt"), samples=10**9, seqlen=4)
    with pytest.raises(BadInput, match=r"data\.samples=1000000000 of data\.seqlen=4 tokens take 214 GB of memory"):
        given.load(words, vocab_size=64, seqlen_limit=64)


def test_what_save_to_disk_wrote_is_read_and_splits_are_asked_for(tmp_path):
    saved = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=saved, test=saved).save_to_disk(tmp_path / "both")
    [file] = find_files(str(tmp_path / "both" / "train"), "key")
    assert list(read_documents(file, "text", "file")) == [row["text"] for row in ROWS]
    with pytest.raises(BadInput, match=r"^key=.*both holds several splits.*: .*both/test, .*both/train$"):
        find_files(str(tmp_path / "both"), "key")
