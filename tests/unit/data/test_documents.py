"""Documents come out of every kind of file alike, and a broken file is named with its line."""

import gzip
import json
import lzma

import pyarrow as pa
import pytest
from pyarrow import parquet

from prune_lab.data.documents import find_files, has_rows, read_documents, read_rows
from prune_lab.errors import BadInput

ROWS = ["one\ntwo", "", "drei \u00fc"]


def read(path, field="text", text_rows="file"):
    return list(read_documents(path, field, text_rows))


def json_lines(rows=ROWS):
    return "".join(json.dumps({"id": 1, "text": row}) + "\n" for row in rows)


def test_rows_of_every_format_are_the_same(tmp_path):
    (tmp_path / "a.jsonl").write_text(json_lines(), encoding="utf-8")
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json_lines().encode()))
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(json_lines().encode()))
    parquet.write_table(pa.table({"id": [1, 2, 3], "text": ROWS}), tmp_path / "a.parquet")
    assert [read(tmp_path / name) for name in ("a.jsonl", "a.json.gz", "a.jsonl.xz", "a.parquet")] == [ROWS] * 4


def test_another_field_may_hold_the_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"sentence": "x"}\n')
    assert read(tmp_path / "a.jsonl", field="sentence") == ["x"]


def test_a_text_file_is_one_document_without_its_byte_order_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\n\ntwo\n")
    assert read(tmp_path / "a.txt") == ["one\n\ntwo\n"]


def test_lines_of_wikitext_keep_their_blanks_and_line_end(tmp_path):
    (tmp_path / "wiki.test.raw").write_text(" \n = Title = \n \n Text . \n")
    assert read(tmp_path / "wiki.test.raw", text_rows="wikitext") == ["", " = Title = \n", "", " Text . \n"]


def test_lines_of_ptb_are_stripped(tmp_path):
    (tmp_path / "ptb.test.txt").write_text(" no it was n't black monday \n but while \n")
    assert read(tmp_path / "ptb.test.txt", text_rows="stripped") == ["no it was n't black monday", "but while"]


def test_only_as_much_is_read_as_is_asked_for(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "first"}\nbroken\n')
    assert next(read_documents(tmp_path / "a.jsonl", "text", "file")) == "first"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", r"a\.jsonl, line 3: not valid JSON"),
        ("[1]", r"line 3: expected an object with keys, found \[1\]"),
        ('{"body": "x", "id": 1}', r"line 3: there is no key 'text'; the keys are body, id"),
        ('{"text": null}', r"line 3: 'text' holds null, neither text nor messages"),
        ('{"text": ["x"]}', r"line 3: 'text' holds \['x'\], neither text nor messages"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n\n' + line + "\n")  # the blank line counts but is no document
    with pytest.raises(BadInput, match=message):
        read(tmp_path / "a.jsonl")


def test_a_missing_column_is_named_with_the_columns_there_are(tmp_path):
    parquet.write_table(pa.table({"id": [1], "body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match=r"a\.parquet has no column 'text'; its columns are id, body"):
        read(tmp_path / "a.parquet")


def test_a_parquet_row_without_text_is_named(tmp_path):
    parquet.write_table(pa.table({"text": ["x", None]}), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match=r"a\.parquet, row 2: 'text' holds null"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("torn.json.gz", gzip.compress(json_lines(ROWS * 50).encode(), mtime=0)[:-20]),
        ("torn.jsonl.xz", lzma.compress(json_lines(ROWS * 50).encode())[:-40]),
        ("plain.txt.gz", b"no gzip"),
        ("plain.txt.xz", b"no xz"),
        ("plain.parquet", b"no parquet"),
        ("empty.parquet", b""),
        ("latin1.txt", "\u00fc".encode("latin-1")),
    ],
)
def test_a_torn_or_mislabelled_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=name.replace(".", r"\.")):
        read(tmp_path / name)


def test_a_folder_stands_for_its_readable_files_by_name(tmp_path):
    for name in ("b.txt", "a.jsonl", "README.md", ".hidden.txt", "c.parquet"):
        (tmp_path / name).touch()
    (tmp_path / "deeper").mkdir()
    assert [path.name for path in find_files(str(tmp_path), "key")] == ["a.jsonl", "b.txt", "c.parquet"]


def test_a_pattern_stands_for_the_files_it_matches(tmp_path):
    (tmp_path / "deeper").mkdir()
    for name in ("b.txt", "a.txt", "c.jsonl", "deeper/d.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in find_files(str(tmp_path / "*.txt"), "key")] == ["a.txt", "b.txt"]
    assert [path.name for path in find_files(str(tmp_path / "**/*.txt"), "key")] == ["a.txt", "b.txt", "d.txt"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    (tmp_path / "a[1].txt").touch()
    assert [path.name for path in find_files(str(tmp_path / "a[1].txt"), "key")] == ["a[1].txt"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.txt", r"data\.calibration=.*none\.txt: there is no such file"),
        ("*.jsonl", "no file matches it as a pattern"),
        ("a.pdf", r"files of this kind cannot be read; allowed are \.txt"),
        ("empty", "no file there can be read"),
        ("*.pdf", "no file there can be read"),
    ],
)
def test_a_path_that_stands_for_nothing_is_refused(tmp_path, path, message):
    (tmp_path / "a.pdf").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=message):
        find_files(str(tmp_path / path), "data.calibration")


PEOPLE = [{"name": "Ann, the first", "says": 'one\n"two"'}, {"name": "Bob \u00fc", "says": ""}]
PEOPLE_CSV = 'name,says\n"Ann, the first","one\n""two"""\n\nBob \u00fc,\n'


def save_people(folder):
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PEOPLE))
    (folder / "a.json").write_text("\n " + json.dumps(PEOPLE, indent=2))
    (folder / "lines.json").write_text("".join(json.dumps(row) + "\n" for row in PEOPLE))
    (folder / "a.csv").write_bytes(b"\xef\xbb\xbf" + PEOPLE_CSV.encode())
    for name in ("a.jsonl", "a.json", "a.csv"):
        content = (folder / name).read_bytes()
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        (folder / f"{name}.xz").write_bytes(lzma.compress(content))
    parquet.write_table(pa.Table.from_pylist(PEOPLE), folder / "a.parquet")


def test_rows_of_every_kind_are_the_same(tmp_path):
    save_people(tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 11 and all(map(has_rows, files))
    for file in files:
        assert [row.values for row in read_rows(file)] == PEOPLE, file
        assert read(file, field="name") == [row["name"] for row in PEOPLE], file


def test_a_row_says_where_it_stands(tmp_path):
    save_people(tmp_path)
    ends = {"a.jsonl": "line 2", "a.json": "item 2", "a.csv": "line 5", "a.parquet": "row 2"}
    for name, end in ends.items():
        assert [*read_rows(tmp_path / name)][1].where == f"{tmp_path / name}, {end}"


def test_a_text_file_has_no_rows(tmp_path):
    assert not has_rows(tmp_path / "a.txt") and not has_rows(tmp_path / "a.parquet.gz")


def test_values_that_lie_deeper_are_kept(tmp_path):
    rows = [{"table": {"id": "t-1", "header": ["A", "B"]}}]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        assert [row.values for row in read_rows(tmp_path / name)] == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "x,y\n1,2\n3\n", r"a\.csv, line 3: 1 values for the 2 columns x, y; .* double quotes"),
        ("a.csv", "x,y\n1,2,3\n", r"a\.csv, line 2: 3 values for the 2 columns x, y"),
        ("a.csv", 'x,y\n1,"2\n', r"a\.csv, line 2: not valid CSV"),
        ("a.csv", 'x,y\n1,"2"3\n', r"a\.csv, line 2: not valid CSV"),
        ("a.json", '[{"x": 1}, 2]', r"a\.json, item 2: expected an object with keys, found 2"),
        ("a.json", '[{"x": 1},', r"a\.json: not valid JSON, an array of objects"),
        ("a.jsonl", '[{"x": 1}]', r"a\.jsonl, line 1: expected an object with keys"),
    ],
)
def test_a_bad_row_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=message):
        list(read_rows(tmp_path / name))


def test_a_file_without_rows_gives_none(tmp_path):
    for name, content in {"a.csv": "", "b.csv": "x,y\n", "a.json": "[]", "b.json": "", "a.jsonl": "\n"}.items():
        (tmp_path / name).write_text(content)
        assert list(read_rows(tmp_path / name)) == []
