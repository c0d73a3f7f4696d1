"""Templates and markers find prompt and completion, or say that they do not fit."""

import pytest

from prune_lab.data.forms import DoesNotFit, Marked, Template
from prune_lab.errors import BadInput

SQL = {
    "question": "Who?",
    "table": {"id": "t-1", "header": ["Player", "No."]},
    "sql": {"human_readable": "SELECT Player FROM table"},
}


def test_a_template_is_filled_from_the_row():
    assert Template(" {mr}", " {ref}").read({"mr": "name[X]", "ref": "X is."}) == (" name[X]", [" X is."])


def test_what_lies_deeper_is_found_and_lists_are_joined():
    form = Template("table: {table[id]}\ncolumns: {table[header]}\nQ: {question}\nA:", " {sql[human_readable]}")
    assert form.read(SQL) == (
        "table: t-1\ncolumns: Player, No.\nQ: Who?\nA:",
        [" SELECT Player FROM table"],
    )
    assert form.needs() == "table[id], table[header], question, sql[human_readable]"


def test_a_completion_that_is_a_list_is_as_many_completions():
    assert Template("{mr}", " <{refs}>").read({"mr": "a", "refs": ["b", "c"]}) == ("a", [" <b>", " <c>"])
    assert Template("{mr}", "{refs} {mr}").read({"mr": "a", "refs": ["b", "c"]}) == ("a", ["b, c a"])


def test_braces_in_a_value_are_left_alone():
    assert Template("{mr}", "{ref}").read({"mr": "{x}", "ref": "}{"}) == ("{x}", ["}{"])


@pytest.mark.parametrize(
    "row",
    [
        {"mr": "a"},
        {"mr": "a", "ref": None},
        {"mr": "a", "ref": {"x": 1}},
        {"mr": None, "ref": "b"},
        {"mr": "a", "ref": [None]},
        {},
    ],
)
def test_a_row_that_lacks_something_does_not_fit(row):
    with pytest.raises(DoesNotFit):
        Template("{mr}", "{ref}").read(row)


@pytest.mark.parametrize("table", ["text", None, {"x": 1}, 3])
def test_a_row_without_what_lies_deeper_does_not_fit(table):
    with pytest.raises(DoesNotFit):
        Template("{table[id]}", "{ref}").read({"table": table, "ref": "b"})


@pytest.mark.parametrize("template", ["no field", "{}", "{0}", "{open", "{a}}"])
def test_a_template_without_a_named_field_is_refused(template):
    with pytest.raises(BadInput, match=r"Template\.completion="):
        Template("{a}", template)


def test_a_text_is_cut_behind_its_last_marker():
    form = Marked("text", "\nA:")
    assert form.read({"text": "Q: x\nA: y\nA: SELECT z"}) == ("Q: x\nA: y\nA:", [" SELECT z"])
    for row in ({"text": "Q: x"}, {"text": 3}, {"body": "\nA: y"}):
        with pytest.raises(DoesNotFit):
            form.read(row)
    assert form.needs() == "text with '\\nA:' in it"
    with pytest.raises(BadInput, match=r"Marked\.marker='' is not allowed"):
        Marked("text", "")
