"""Prompts of the user's own and what the model writes after them."""

import json

import pytest
import torch

from prune_lab.data.tokens import Data
from prune_lab.errors import BadInput
from prune_lab.evaluation.continuation import Continuation, repeated
from prune_lab.evaluation.evaluation import Subject
from prune_lab.evaluation.score_cache import cached_scores


@pytest.fixture
def subject(tiny_model, letters, tmp_path):
    model = tiny_model("llama")
    model.tokenizer = letters
    windows = torch.zeros(1, 8, dtype=torch.int64)
    return Subject(model, Data(windows, windows, None, {}), torch.device("cpu"), tmp_path)


def test_texts_are_what_the_model_writes_in_the_order_of_the_prompts(subject):
    prompts = ["a long prompt", "b", "a b"]
    scores = Continuation(prompts=prompts, max_new_tokens=6)(subject)
    rows = scores.texts["continuations"]
    assert [row["prompt"] for row in rows] == prompts
    for row in rows:
        tokens = subject.model.tokenizer.encode(row["prompt"])
        before = len(tokens)
        for _ in range(6):
            tokens.append(int(subject.model.hf(torch.tensor([tokens])).logits[0, -1].argmax()))
        assert row["continuation"] == subject.model.tokenizer.decode(tokens[before:], skip_special_tokens=True)
    assert set(scores.metrics) == {"repeated_4grams"}
    assert scores.protocol["search"]["beams"] == 1
    json.dumps(scores.protocol)


def test_kept_texts_come_back_and_other_prompts_are_written_anew(subject, monkeypatch):
    calls = []
    original = Continuation.complete
    monkeypatch.setattr(Continuation, "complete", lambda *args: calls.append(1) or original(*args))
    first, second = (cached_scores(Continuation(prompts=["a", "b"], max_new_tokens=2), subject) for _ in range(2))
    assert first == second and len(first.texts["continuations"]) == 2
    assert len(calls) == 1
    cached_scores(Continuation(prompts=["a", "c"], max_new_tokens=2), subject)
    assert len(calls) == 2


def test_repeated_4grams_by_hand():
    assert repeated([1, 2, 3]) == 0
    assert repeated([1, 2, 3, 4, 5]) == 0
    assert repeated([7] * 10) == 1 - 1 / 7
    assert repeated([1, 2, 3, 4, 1, 2, 3, 4]) == 1 - 4 / 5  # the fifth is the first again


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], r"prompts=\[\] is not allowed; allowed: a list of texts"),
        ([5], r"prompts=\[5\] is not allowed"),
        ([""], r"prompts=\[''\] is not allowed"),
        ("Hello there", r"prompts='Hello there' is not allowed; allowed: a list of texts, such as \[Hello there\]"),
    ],
)
def test_bad_prompts_are_refused(prompts, message):
    with pytest.raises(BadInput, match=message):
        Continuation(prompts=prompts)


def test_prompts_that_the_model_cannot_go_on_from_are_refused(subject):
    with pytest.raises(BadInput, match=r"prompts=.*: prompt 1 .* has 64 tokens, and the model 64 positions"):
        Continuation(prompts=["a", "b" * 64]).check(subject)
    Continuation(prompts=["b" * 63], max_new_tokens=9)(subject)
    subject.model.tokenizer.add_tokens([f"<{number}>" for number in range(20)])
    with pytest.raises(BadInput, match=r"prompt 0 .* has the token \d\d, and the model knows 64"):
        Continuation(prompts=["<19>"]).check(subject)
    subject.model.tokenizer = None
    with pytest.raises(BadInput, match="tiny_llama has no tokenizer"):
        Continuation().check(subject)
