"""Whatever lies in a folder of runs, the report of the others is written, and what is left out is named in a line."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from prune_lab.report.page.collect import MOST_METRICS, Collection
from prune_lab.report.page.command import main
from prune_lab.report.page.flat import write_flat
from prune_lab.report.page.html import page_of
from prune_lab.report.page.run import MOST_METRICS as MOST_METRICS_OF_ONE
from prune_lab.report.page.run import MOST_PROTOCOL

GOOD = {"status": "finished", "metrics": {"evaluate/perplexity": 2.5}}
LARGEST_PAGE = 2**21


def write(folder, record):
    folder.mkdir(parents=True, exist_ok=True)
    text = record if isinstance(record, str) else json.dumps(record)
    (folder / "record.json").write_text(text, encoding="utf-8")
    return folder


def metrics(count, prefix="m"):
    return {"status": "finished", "metrics": {f"{prefix}/{number}": 1.0 for number in range(count)}}


def special(place):
    def lie_there(folder):
        folder.mkdir()
        place(folder / "record.json")

    return lie_there


UNREADABLE = {
    "FIFO": special(os.mkfifo),
    "folder": special(os.mkdir),
    "device": special(lambda path: path.symlink_to("/dev/zero")),
    "loop of links": special(lambda path: path.symlink_to(path.name)),
    "link to nothing": special(lambda path: path.symlink_to("nowhere")),
    "bytes": special(lambda path: path.write_bytes(b"\xff\xfe")),
    "20,000 metrics": lambda folder: write(folder, metrics(20_000)),
    "a name of a million characters": lambda folder: write(folder, {"status": "x", "metrics": {"m/" + "n" * 10**6: 1}}),
    "a protocol too large": lambda folder: write(folder, {"status": "x", "protocol": {"a": "b" * MOST_PROTOCOL}}),
    "deep": lambda folder: write(folder, '{"status": "x", "protocol": {"a": ' + "[" * 500 + "]" * 500 + "}}"),
}
READABLE = {
    "half of a surrogate pair": '{"status": "finished", "metrics": {"\\ud800/x": 1}, "error": "\\udfff"}',
    "numbers that are not finite": '{"status": "finished", "metrics": {"a/x": NaN, "a/y": -Infinity}}',
    "a long message": {"status": "failed", "error": "x" * 10**7},
    "many held-out losses": {
        "status": "finished",
        "protocol": {"finetune": {"held_out": {str(step): 1.0 for step in range(30_000)}}},
    },
    "a description of what was not measured": {
        "status": "finished",
        "metric_info": {f"m/{number}": {"label": "x" * 1000} for number in range(1000)},
    },
}


def reported(tmp_path, capsys):
    main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    page = tmp_path / "out" / "report.html"
    assert page.stat().st_size < LARGEST_PAGE
    data = json.loads(page.read_text().partition('id="data-runs">')[2].partition("</script>")[0])
    return data, capsys.readouterr().err.splitlines()


@pytest.mark.skipif(os.name != "posix", reason="special files")
@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_is_no_record_is_named_in_a_line(tmp_path, capsys, kind):
    write(tmp_path / "runs" / "good", GOOD)
    UNREADABLE[kind](tmp_path / "runs" / "bad")
    data, lines = reported(tmp_path, capsys)
    assert data["folders"] == ["good"]
    assert [name for name, _ in data["unreadable"]] == ["bad"]
    assert len(lines) == 1 and lines[0].startswith("prune-lab-report: bad/record.json was left out: it")


@pytest.mark.parametrize("kind", READABLE)
def test_an_odd_record_is_shown_and_cut_to_size(tmp_path, capsys, kind):
    write(tmp_path / "runs" / "good", GOOD)
    write(tmp_path / "runs" / "odd", READABLE[kind])
    data, lines = reported(tmp_path, capsys)
    assert (data["folders"], lines) == (["good", "odd"], [])


def test_the_columns_are_bounded_and_runs_with_few_metrics_go_first(tmp_path, capsys):
    for number in range(MOST_METRICS // MOST_METRICS_OF_ONE + 1):
        write(tmp_path / "runs" / str(number), metrics(MOST_METRICS_OF_ONE, prefix=f"m{number}"))
    write(tmp_path / "runs" / "9", GOOD)
    data, lines = reported(tmp_path, capsys)
    assert data["folders"] == ["0", "1", "9"] and len(data["metrics"]) <= MOST_METRICS
    assert len(lines) == 1 and "2/record.json" in lines[0]


@pytest.mark.skipif(os.name != "posix", reason="special files")
def test_what_lies_beside_a_record_stops_nothing_either(tmp_path, capsys):
    run = write(tmp_path / "runs" / "0", {"status": "failed"})
    (run / ".hydra").mkdir()
    for path in (run / "layers.csv", run / "rounds.csv", run / ".hydra" / "hydra.yaml"):
        os.mkfifo(path)
    (run / ".hydra" / "overrides.yaml").write_text("[" * 100_000)  # would end a process that makes it in C
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs")
    odd = os.fsdecode(b"two\nlines \xff")
    write(tmp_path / "runs" / odd, "{")
    data, lines = reported(tmp_path, capsys)
    assert data["folders"] == ["0"] and len(lines) == 1 and "two\ufffdlines \ufffd/record.json" in lines[0]


def test_a_folder_whose_name_is_no_text_takes_a_report(tmp_path, capsys):
    write(tmp_path / "runs" / "0", GOOD)
    out = tmp_path / os.fsdecode(b"\xff")
    main([str(tmp_path / "runs"), "--out", str(out)])
    assert {path.name for path in out.iterdir()} == {"report.html", "runs.csv", "runs.parquet"}
    assert capsys.readouterr().out.endswith("\ufffd/report.html\n")


def test_a_time_of_change_in_another_age_is_no_reason_to_stop(tmp_path, capsys):
    path = write(tmp_path / "runs" / "0", GOOD) / "record.json"
    try:
        os.utime(path, (10**12, 10**12))
    except (OSError, OverflowError):
        pytest.skip("the file system knows no such times")
    assert reported(tmp_path, capsys)[0]["folders"] == ["0"]


PLAIN = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(some.characters(), max_size=6),
    lambda part: some.lists(part, max_size=3) | some.dictionaries(some.text(max_size=6), part, max_size=3),
    max_leaves=8,
)
SECTION = some.dictionaries(some.text(some.sampled_from("ab/{}*_"), max_size=5), PLAIN, max_size=4)
CONFIG = some.fixed_dictionaries({}, optional=dict.fromkeys(("model", "sparsity", "stages", "method", "seed"), PLAIN))
RECORDS = some.fixed_dictionaries(
    {"status": some.text(some.characters(), max_size=6)},
    optional={
        "config": CONFIG | PLAIN,
        "overrides": some.lists(some.text(max_size=6), max_size=3) | PLAIN,
        "identity": PLAIN,
        "error": PLAIN,
        "protocol": some.fixed_dictionaries({"finetune": some.fixed_dictionaries({"held_out": PLAIN})}) | PLAIN,
        **dict.fromkeys(("metrics", "metric_info", "choices"), SECTION | PLAIN),
    },
)


@settings(max_examples=250, deadline=None)
@given(some.lists(RECORDS, min_size=1, max_size=3), some.text('a,"\n0.5-', max_size=40))
def test_any_records_make_a_report(tmp_path_factory, records, table):
    folder = tmp_path_factory.getbasetemp() / "any records"
    for number in range(3):
        run = write(folder / str(number), records[number] if number < len(records) else "")
        (run / "layers.csv").write_text("name,sparsity\n" + table)
        (run / "rounds.csv").write_text("round,loss\n" + table)
    collection = Collection(folder)
    collection.refresh()
    write_flat(collection.runs, folder / "out")
    page_of(collection, "any")
    assert len(collection.runs) + collection.taken + len(collection.unreadable) == 3
