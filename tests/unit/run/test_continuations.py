"""What models wrote, read from a run folder and printed for a terminal or for a file."""

import io
import json

import pytest
from rich.cells import cell_len
from rich.console import Console

from prune_lab.run.continuations import Continued, print_continuations, read_continuations
from prune_lab.run.summary import print_summary

COLUMNS = {"dense": "dense", "evaluate": "pruned"}
LONG = "the fox went home and " * 12


def printed(found, width, *, terminal=True):
    stream = io.StringIO()
    print_continuations(Console(file=stream, force_terminal=terminal, width=width, color_system=None), found, COLUMNS)
    return stream.getvalue()


def write(folder, name, *rows):
    lines = [json.dumps({"prompt": prompt, "continuation": text}) for prompt, text in rows]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_both_models_are_read_by_prompt_also_if_one_is_given_twice(tmp_path):
    write(tmp_path, "continuations_dense.jsonl", ("A", "1"), ("A", "2"), ("B", "3"))
    write(tmp_path, "continuations.jsonl", ("A", "4"), ("C", "5"), ("A", "6"))
    assert read_continuations(tmp_path) == [
        Continued("A", {"dense": "1", "evaluate": "4"}),
        Continued("A", {"dense": "2", "evaluate": "6"}),
        Continued("B", {"dense": "3"}),
        Continued("C", {"evaluate": "5"}),
    ]


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[1]\n{half\n{}\n5\n" + b"[" * 5000, b'{"prompt": "A"}\n'])
def test_damaged_files_are_left_out(tmp_path, content):
    (tmp_path / "continuations.jsonl").write_bytes(content)
    assert read_continuations(tmp_path) == []
    (tmp_path / "continuations_dense.jsonl").mkdir()
    assert read_continuations(tmp_path) == []


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_in_a_terminal_they_stand_side_by_side_and_no_line_is_too_long(width):
    found = [
        Continued("A prompt", {"dense": LONG, "evaluate": "x" * 300}),
        Continued("p " * 300, {"dense": "日本" * 99}),
    ]
    text = printed(found, width)
    assert max(map(cell_len, text.splitlines())) <= min(width, 132)
    heads = next(line for line in text.splitlines() if "dense" in line)
    assert heads.index("dense") < width / 4 and heads.index("pruned") > min(width, 132) / 2 - 2
    assert text.count("fox") == 12 and text.count("x") == 300 + 12 and text.count("日") == 99


def test_elsewhere_it_is_plain_text_whole_lines_under_one_another():
    found = [Continued("A prompt", {"dense": f" {LONG}\n\n\nend", "evaluate": ""})]
    assert printed(found, 80, terminal=False) == (
        f"\nA prompt\n  dense:  {LONG.strip()}\n\n          end\n  pruned: (nothing: the text ends here)\n\n"
    )
    assert printed(found, 40).count("dense:") == 1  # too narrow for two columns


def test_what_a_model_writes_does_not_reach_the_terminal_as_commands():
    text = printed([Continued("[bold]a[/]", {"dense": "\x1b[31mred\x07", "evaluate": "[link=x]y[/link]"})], 80)
    assert "\x1b" not in text and "\x07" not in text
    assert "[bold]a[/]" in text and "[link=x]y[/link]" in text


def test_the_summary_ends_with_them(tmp_path, capsys):
    write(tmp_path, "continuations.jsonl", ("The capital is", " Paris"))
    record = {"title": "t", "config": {}, "protocol": {}, "metrics": {"evaluate/repeated_4grams": 0.25}}
    print_summary(record, tmp_path)
    out = capsys.readouterr().out
    assert "repeated 4-grams of texts" in out and "25.00%" in out
    assert out.index("25.00%") < out.index("The capital is\n  pruned: Paris\n") < out.index("everything about")
