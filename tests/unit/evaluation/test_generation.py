"""Generated texts are the model's, one prompt at a time or many, and the numbers can be checked by hand."""

import json
import math

import pytest
import torch

from prune_lab.data.tokens import Data, Pair
from prune_lab.errors import BadInput
from prune_lab.evaluation.evaluation import Subject
from prune_lab.evaluation.generation import Generation, compare
from prune_lab.evaluation.score_cache import cached_scores


@pytest.fixture
def subject(tiny_model, letters, tmp_path):
    """A tiny model with a letter a token, and three prompts."""
    model = tiny_model("opt")
    model.tokenizer = letters
    pairs = [
        Pair(prompt, letters.encode(f"<s>{prompt}"), references)
        for prompt, references in [("abc", ["def", "gh"]), ("a", ["b"]), ("abcdefgh", ["i"])]
    ]
    windows = torch.zeros(1, 8, dtype=torch.int64)
    data = Data(windows, windows, None, {"pairs": {"source": "test"}}, pairs=pairs)
    return Subject(model, data, torch.device("cpu"), tmp_path)


def test_texts_and_numbers_are_returned(subject):
    scores = Generation(beams=2, max_new_tokens=4)(subject)
    lines = scores.texts["generations"]
    assert [(line["prompt"], line["references"]) for line in lines] == [
        ("abc", ["def", "gh"]),
        ("a", ["b"]),
        ("abcdefgh", ["i"]),
    ]
    expected, _ = compare([line["generated"] for line in lines], [line["references"] for line in lines])
    assert scores.metrics == expected
    assert set(expected) == {"bleu", "rouge1", "rouge2", "rougeL", "exact_match"}
    assert scores.protocol["search"] == {
        "beams": 2,
        "length_penalty": 0.9,
        "no_repeat_ngram_size": 4,
        "max_new_tokens": 4,
        "batch_size": None,
    }
    assert (scores.protocol["prompts"], scores.protocol["prompts_with_less_room"]) == (3, 0)
    assert "nrefs:var" in scores.protocol["bleu"]
    assert (scores.protocol["limit"], scores.protocol["chat_template"]) == (None, False)
    json.dumps(scores.protocol)


def test_a_limit_takes_prompts_evenly_spaced(subject):
    lines = Generation(beams=1, max_new_tokens=2, limit=2)(subject).texts["generations"]
    assert [line["prompt"] for line in lines] == ["abc", "a"]  # of 3: the numbers 0 and 1.5, cut
    assert len(Generation(limit=9)._asked(subject)) == 3


def test_scores_of_the_dense_model_are_kept_until_prompts_or_settings_change(subject, monkeypatch):
    calls = []
    original = Generation.complete
    monkeypatch.setattr(Generation, "complete", lambda *args: calls.append(1) or original(*args))
    first = cached_scores(Generation(beams=1, max_new_tokens=2), subject)
    assert cached_scores(Generation(beams=1, max_new_tokens=2), subject) == first
    assert len(calls) == 1
    cached_scores(Generation(beams=1, max_new_tokens=3), subject)
    subject.data.pairs[0].references.append("x")
    cached_scores(Generation(beams=1, max_new_tokens=2), subject)
    assert len(calls) == 3


def test_data_without_prompts_is_refused(tiny_model, make_subject, subject):
    with pytest.raises(BadInput, match=r"evaluate=generation needs prompts.*use data=e2e, data=samsum or data=wikisql"):
        Generation().check(make_subject(tiny_model("opt")))
    subject.model.tokenizer = None
    with pytest.raises(BadInput, match="tiny_opt has no tokenizer; put its files beside the model"):
        Generation().check(subject)


def test_a_limit_of_no_prompts_is_refused():
    with pytest.raises(BadInput, match=r"Generation\.limit=0"):
        Generation(limit=0)


def test_with_the_chat_template_the_texts_of_the_prompts_are_what_the_user_says(subject, monkeypatch):
    subject.model.tokenizer.chat_template = "{{ messages[0].content }}b{{ messages[0].content }}"
    seen = []
    original = Generation.complete
    monkeypatch.setattr(Generation, "complete", lambda *args: seen.extend(args[3]) or original(*args))
    scores = Generation(beams=1, max_new_tokens=2, apply_chat_template=True)(subject)
    assert seen == [subject.model.tokenizer.encode(text) for text in ("abcbabc", "aba", "abcdefghbabcdefgh")]
    assert [row["prompt"] for row in scores.texts["generations"]] == ["abc", "a", "abcdefgh"]
    subject.model.tokenizer.chat_template = "{% for n in range(64) %}a{% endfor %}"
    with pytest.raises(
        BadInput, match=r"apply_chat_template=true: prompt 0 .* has 64 tokens, and the model 64 positions"
    ):
        Generation(apply_chat_template=True).check(subject)


def test_equal_texts_score_best():
    metrics, _ = compare(["the cat sat on the mat"], [["a dog", "the  cat sat on the mat"]])
    assert metrics == pytest.approx({"bleu": 100, "rouge1": 1, "rouge2": 1, "rougeL": 1, "exact_match": 1})


def test_bleu_by_hand():
    texts = ["the cat sat on the rug", "a b c d"]
    references = [["the cat sat on the mat", "rug x y z"], ["a b c d"]]
    metrics, protocol = compare(texts, references)
    # The first: all 6 words ("rug" from the other reference), 4 of 5 pairs, 3 of 4 triples, 2 of 3 quadruples; the
    # second: all 4, 3, 2 and 1. Neither is shorter than its closest reference.
    expected = 100 * math.exp(sum(map(math.log, (10 / 10, 7 / 8, 5 / 6, 3 / 4))) / 4)
    assert metrics["bleu"] == pytest.approx(expected)
    assert "nrefs:var" in protocol["bleu"] and "tok:13a" in protocol["bleu"]


def test_bleu_punishes_short_texts():
    metrics, _ = compare(["a b c d"], [["a b c d e f g h"]])
    assert metrics["bleu"] == pytest.approx(100 * math.exp(1 - 8 / 4))


def test_rouge_is_f1_of_the_best_reference_and_a_mean_over_prompts():
    metrics, _ = compare(["the cat ran", "x"], [["the cat sat down", "dog"], ["y"]])
    # first: 2 of 3 and 2 of 4 words, F1 4/7; 1 of 2 and 1 of 3 pairs, F1 2/5; longest common part as long as the words
    assert metrics["rouge1"] == pytest.approx(4 / 7 / 2)
    assert metrics["rouge2"] == pytest.approx(2 / 5 / 2)
    assert metrics["rougeL"] == pytest.approx(4 / 7 / 2)


def test_exact_matches_ignore_blanks_only():
    metrics, _ = compare(
        ["SELECT  a\nFROM b", "select a", "c", ""], [["SELECT a FROM b"], ["SELECT a"], ["b", "c"], ["x"]]
    )
    assert metrics["exact_match"] == 2 / 4
