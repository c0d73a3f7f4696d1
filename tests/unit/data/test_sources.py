"""Each source reads the text it names, from wherever it lies, and says where it looked."""

import gzip
import json
import lzma
import platform

import pyarrow as pa
import pytest
from huggingface_hub import constants
from pyarrow import parquet

from prune_lab.data import limits, sources, stdlib
from prune_lab.data.sources import FileText, HubRows, HubText, StdlibText
from prune_lab.errors import BadInput

C4 = {"repo": "allenai/c4", "file": "en/c4-train.00000-of-01024.json.gz", "split": "train"}
PTB = {"repo": "ptb-text-only/ptb_text_only", "file": "penn_treebank/test/0000.parquet", "split": "test"}


def json_lines(*rows):
    return "".join(json.dumps({"text": row}) + "\n" for row in rows)


@pytest.fixture
def empty_hub_cache(tmp_path, monkeypatch):
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    return folder


def test_the_standard_library_gives_the_texts_of_its_split():
    source = StdlibText("evaluation")
    assert source.read() == [document.text for document in stdlib.split("evaluation")]
    assert source.describe() == {"source": "stdlib", "split": "evaluation", "python": platform.python_version()}


def test_an_unknown_split_is_refused_at_once():
    with pytest.raises(BadInput, match=r"StdlibText\.split='test' is not allowed; allowed: train, calibration"):
        StdlibText("test")


def test_files_are_read_one_after_the_other(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.jsonl").write_text(json_lines("first", "next"))
    source = FileText(path=str(tmp_path))
    assert source.read() == ["first", "next", "second"]
    assert source.describe() == {"source": "files", "path": str(tmp_path), "files": 2}


def test_a_missing_file_is_refused_at_once_with_its_key():
    with pytest.raises(BadInput, match=r"data\.evaluation=nowhere\.txt: there is no such file"):
        FileText(path="nowhere.txt", key="data.evaluation")


@pytest.mark.parametrize(
    "name", ["en/c4-train.00000-of-01024.json.gz", "c4-train.00000-of-01024.json.gz", "train.json.gz", "train.jsonl.gz"]
)
def test_a_local_copy_may_have_the_hubs_names_or_plain_ones(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(gzip.compress(json_lines("a", "b", "c").encode()))
    source = HubText(**C4, root=str(tmp_path), limit_documents=2)
    assert source.read() == ["a", "b"]
    assert source.describe() == {"source": "allenai/c4", "split": "train", "file": str(tmp_path / name)}


def test_a_text_without_room_in_memory_says_how_much_of_it_has(tmp_path, monkeypatch):
    (tmp_path / "train.jsonl").write_text(json_lines(*["a" * 100] * 50))
    monkeypatch.setattr(sources, "_LOOK_EVERY", 1)
    monkeypatch.setattr(limits, "available_memory", lambda: limits.BYTES_PER_CHARACTER * 1999)
    with pytest.raises(BadInput, match=r"2,000 characters.*the first part of it: \+\+HubText\.limit_documents=18, say"):
        HubText(**C4, root=str(tmp_path)).read()
    assert len(HubText(**C4, root=str(tmp_path), limit_documents=18).read()) == 18


@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train.txt", "train.parquet"])
def test_plain_local_copies_of_every_kind_are_read(tmp_path, name):
    if name.endswith("parquet"):
        parquet.write_table(pa.table({"text": ["a", "b"]}), tmp_path / name)
    else:
        (tmp_path / name).write_text("a\nb\n" if name.endswith("txt") else json_lines("a", "b"))
    assert HubText(**C4, root=str(tmp_path)).read() == ["a", "b"]


def test_a_bare_hub_name_that_does_not_say_its_split_is_not_taken(tmp_path):
    parquet.write_table(pa.table({"sentence": ["a"]}), tmp_path / "0000.parquet")
    with pytest.raises(BadInput, match=r"split test; looked for penn_treebank/test/0000\.parquet, test\.jsonl"):
        HubText(**PTB, root=str(tmp_path))


def test_further_local_names_come_before_the_plain_ones(tmp_path):
    (tmp_path / "ptb.test.txt").write_text(" right \n")
    (tmp_path / "test.txt").write_text("wrong\n")
    assert HubText(**PTB, root=str(tmp_path), local_names=["ptb.test.txt"]).read() == ["right"]


def test_a_root_that_is_no_folder_is_refused_at_once(tmp_path):
    with pytest.raises(BadInput, match=r"HubText\.root='.*nowhere': there is no such folder"):
        HubText(**C4, root=str(tmp_path / "nowhere"))


def test_a_copy_in_the_hubs_cache_is_read_without_a_question_to_the_hub(empty_hub_cache, monkeypatch):
    commit = "0123456789012345678901234567890123456789"
    folder = empty_hub_cache / "datasets--allenai--c4"
    file = folder / "snapshots" / commit / C4["file"]
    file.parent.mkdir(parents=True)
    file.write_bytes(gzip.compress(json_lines("cached").encode()))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    monkeypatch.setattr(sources, "_answers", lambda address: pytest.fail("asked the hub"))
    assert HubText(**C4).read() == ["cached"]
    assert HubText(**C4, revision=commit).read() == ["cached"]


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_offline_without_a_copy_names_the_remedy(empty_hub_cache, monkeypatch, variable):
    if variable == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # read from the environment once, at import
    else:
        monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(sources, "_answers", lambda address: pytest.fail("asked the hub"))
    with pytest.raises(BadInput, match=r"en/c4-train.* of allenai/c4 .*offline use.*set data\.root=DIR"):
        HubText(**C4).read()


def test_an_unreachable_hub_is_noticed_before_its_client_tries_for_half_a_minute(empty_hub_cache, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(BadInput, match=r"127\.0\.0\.1:9 cannot be reached\. .*set data\.root=DIR"):
        HubText(**C4).read()


def test_a_failed_download_is_one_message(empty_hub_cache, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("404: no such revision")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    monkeypatch.setattr(sources, "_answers", lambda address: True)
    with pytest.raises(BadInput, match=r"cannot be downloaded: 404: no such revision\. .*data\.root=DIR"):
        HubText(**C4).read()


def test_bad_limits_and_row_rules_are_refused():
    with pytest.raises(BadInput, match="limit_documents=0 is not allowed"):
        HubText(**C4, limit_documents=0)
    with pytest.raises(BadInput, match=r"HubText\.text_rows='words' is not allowed; allowed: file, stripped, wikitext"):
        HubText(**C4, text_rows="words")


E2E = {"repo": "owner/e2e", "file": "default/test/0000.parquet", "split": "test", "local_names": ["testset_w_refs.csv"]}


@pytest.mark.parametrize("name", ["testset_w_refs.csv", "test.csv", "test.json", "test.jsonl"])
@pytest.mark.parametrize("ending", ["", ".xz"])
def test_rows_of_a_local_copy_are_read_by_any_of_its_names(tmp_path, name, ending):
    content = {"csv": "mr,ref\na,b\nc,d\n", "json": '[{"mr": "a", "ref": "b"}]', "jsonl": '{"mr": "a", "ref": "b"}\n'}
    data = content[name.rpartition(".")[2]].encode()
    (tmp_path / (name + ending)).write_bytes(lzma.compress(data) if ending else data)
    source = HubRows(**E2E, root=str(tmp_path), limit_rows=1)
    assert [row.values for row in source.read()] == [{"mr": "a", "ref": "b"}]
    assert source.describe() == {"source": "owner/e2e", "split": "test", "file": str(tmp_path / (name + ending))}


def test_a_text_file_is_no_copy_of_rows(tmp_path):
    (tmp_path / "test.txt").write_text("a\n")
    expected = (
        r"looked for default/test/0000\.parquet, testset_w_refs\.csv, test\.jsonl, .*test\.csv \(plain, \.gz or \.xz\)"
    )
    with pytest.raises(BadInput, match=expected):
        HubRows(**E2E, root=str(tmp_path))


def test_rows_come_from_the_hubs_cache_too(empty_hub_cache):
    folder = empty_hub_cache / "datasets--owner--e2e"
    file = folder / "snapshots" / "c0ffee" / E2E["file"]
    file.parent.mkdir(parents=True)
    parquet.write_table(pa.table({"mr": ["a"], "ref": ["b"]}), file)
    reference = folder / "refs" / "refs" / "convert" / "parquet"
    reference.parent.mkdir(parents=True)
    reference.write_text("c0ffee")
    source = HubRows(**E2E, revision="refs/convert/parquet")
    assert [row.values for row in source.read()] == [{"mr": "a", "ref": "b"}]
    assert source.describe()["revision"] == "refs/convert/parquet"


def test_bad_limits_of_rows_are_refused():
    with pytest.raises(BadInput, match="limit_rows=0 is not allowed"):
        HubRows(**E2E, limit_rows=0)
