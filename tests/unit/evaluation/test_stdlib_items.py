"""The offline questions: sane, fair, and about text that no model was trained on."""

import hashlib
import os
import subprocess
import sys
from collections import Counter

import pytest

from prune_lab.data import stdlib
from prune_lab.evaluation import stdlib_items
from prune_lab.evaluation.stdlib_items import CHOICES, LONGEST, Item
from prune_lab.evaluation.stdlib_tasks import TASKS

NAMES = sorted(TASKS)


@pytest.fixture(params=NAMES)
def questions(request) -> tuple[Item, ...]:
    return stdlib_items.items()[request.param]


def squeezed(text: str) -> str:
    return "".join(text.split())


def test_there_are_the_tasks_that_are_announced():
    assert sorted(stdlib_items.items()) == NAMES


def test_each_task_is_large_enough_to_tell_models_apart(questions):
    assert 100 <= len(questions) <= stdlib_items.QUESTIONS


def test_each_position_is_right_equally_often(questions):
    counts = Counter(item.gold for item in questions)
    assert set(counts) == set(range(CHOICES))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_every_question_has_four_different_choices_on_one_side(questions):
    for item in questions:
        assert sorted([len(item.contexts), len(item.continuations)]) == [1, CHOICES]
        assert len({*item.contexts, *item.continuations}) == CHOICES + 1


def test_white_space_stands_before_a_continuation_and_not_after_a_context(questions):
    for item in questions:
        assert all(context == context.strip() != "" for context in item.contexts)
        assert all(text[0] == " " and text[1:] == text.strip() != "" for text in item.continuations)
        assert all(len(context) <= LONGEST for context in item.contexts)


def test_no_question_comes_twice(questions):
    assert len({(item.contexts, item.continuations) for item in questions}) == len(questions)


def test_the_right_pair_stands_in_its_document(questions):
    texts = {document.name: squeezed(document.text) for document in stdlib.split("evaluation")}
    for item in questions:
        context = item.contexts[item.gold if len(item.contexts) > 1 else 0]
        continuation = item.continuations[item.gold if len(item.continuations) > 1 else 0]
        assert squeezed(context + continuation) in texts[item.document]


def test_nothing_asked_about_is_in_the_other_splits(questions):
    others = squeezed("".join(document.text for name in ("train", "calibration") for document in stdlib.split(name)))
    for item in questions:
        context = item.contexts[item.gold if len(item.contexts) > 1 else 0]
        continuation = item.continuations[item.gold if len(item.continuations) > 1 else 0]
        assert squeezed(context + continuation) not in others


def test_wrong_continuations_of_the_order_task_are_made_of_the_same_words():
    for item in stdlib_items.items()["stdlib_order"]:
        words = [sorted(text.split()) for text in item.continuations]
        assert words == [words[0]] * CHOICES


def test_the_right_context_holds_the_name_already_and_the_wrong_ones_do_not():
    for item in stdlib_items.items()["stdlib_identifier"]:
        name = item.continuations[0].lstrip(" ([`'\"*")
        assert [name in context for context in item.contexts] == [index == item.gold for index in range(CHOICES)]


def test_wrong_contexts_are_about_as_long_as_the_right_one():
    for name in ("stdlib_continuation", "stdlib_identifier"):
        lengths = [[len(context) for context in item.contexts] for item in stdlib_items.items()[name]]
        longest = [four.index(max(four)) == index % CHOICES for index, four in enumerate(lengths)]
        assert 0.1 < sum(longest) / len(longest) < 0.4


def test_the_questions_are_the_same_in_another_process():
    program = (
        "import hashlib; from prune_lab.evaluation import stdlib_items; "
        "print(hashlib.sha256(repr(stdlib_items.items()).encode()).hexdigest(), end='')"
    )
    digest = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert digest == hashlib.sha256(repr(stdlib_items.items()).encode()).hexdigest()
