"""Conversations in files and data sets of the hub, which become texts by the tokenizer's chat template."""

import copy
import json

import pytest

from prune_lab.data.chats import as_document, as_texts
from prune_lab.data.documents import read_documents
from prune_lab.errors import BadInput

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<{{ m.role }}>{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}{% endfor %}"
)
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "reasoning_content": "greet"}]


@pytest.fixture
def talking(words):
    tokenizer = copy.deepcopy(words)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_messages_of_both_usual_forms_are_conversations():
    assert as_document(CHAT) == CHAT
    shared = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}, {"from": "system", "value": "x"}]
    assert [each["role"] for each in as_document(shared)] == ["user", "assistant", "system"]
    for odd in (
        [],
        ["Hi"],
        [{"role": "user"}],
        [{"role": "user", "content": "a"}, {"from": "x", "value": "b"}],
        3,
        None,
    ):
        assert as_document(odd) is None


def test_the_template_writes_them_without_the_token_that_begins_a_text(talking):
    assert as_texts(["plain", CHAT], talking, "data.calibration") == ["plain", "<user>Hi<assistant>(greet)Hello"]


def test_what_the_template_does_not_take_is_told_with_its_place(talking):
    odd = [{"role": "tool", "content": "1"}]
    with pytest.raises(BadInput, match=r"data\.calibration, document 2: .*cannot write it: no tools here"):
        as_texts([CHAT, odd], talking, "data.calibration")


def test_conversations_need_a_template(words):
    assert words.chat_template is None
    with pytest.raises(BadInput, match=r"data\.evaluation has conversations.*has none; give texts"):
        as_texts([CHAT], words, "data.evaluation")


def test_a_file_of_messages_is_read(tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": CHAT}) + "\n")
    assert list(read_documents(path, "messages", "file")) == [CHAT]
    path.write_text(json.dumps({"messages": [1]}) + "\n")
    with pytest.raises(BadInput, match=r"chat\.jsonl, line 1: 'messages' holds \[1\], neither text nor messages"):
        list(read_documents(path, "messages", "file"))
