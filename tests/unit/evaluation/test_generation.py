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
from prune_lab.models.load import Checkpoint

PROMPTS = (
    "He",
    " name[Blue Spice], eatType[coffee shop]",
    "Once upon a time there was a man who",
    "The history of the city begins in the year when the first people came to the river and",
)


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


@pytest.mark.parametrize("family", ["opt", "llama", "gpt_neo"])
@pytest.mark.parametrize("beams", [1, 4])
def test_a_batch_gives_what_each_prompt_gives_alone(family, beams):
    checkpoint = Checkpoint(kind="reference", path=family, dtype="float32")
    tokenizer = checkpoint.load_tokenizer()
    hf = checkpoint.load(tokenizer).hf
    prompts = [[0, *tokenizer.encode(prompt, add_special_tokens=False)] for prompt in PROMPTS]
    generation = Generation(beams=beams, max_new_tokens=16)
    together = generation.complete(hf, tokenizer, prompts, 512)
    assert together == [generation.complete(hf, tokenizer, [prompt], 512)[0] for prompt in prompts]
    assert len(set(together)) == len(PROMPTS)
    assert hf.config.use_cache is False


def test_greedy_search_is_the_likeliest_token_each_time(tiny_model, letters, family):
    model = tiny_model(family)
    prompts = [[0, 5, 9], [0, 5, 9, 20, 31, 12, 7, 40], [0]]
    found = Generation(beams=1, no_repeat_ngram_size=0, max_new_tokens=5).complete(model.hf, letters, prompts, 64)
    for prompt, text in zip(prompts, found, strict=True):
        tokens = list(prompt)
        for _ in range(5):
            tokens.append(int(model.hf(torch.tensor([tokens])).logits[0, -1].argmax()))
            if tokens[-1] == letters.eos_token_id:
                break
        assert text == letters.decode(tokens[len(prompt) :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("family", ["opt", "llama", "gpt_neo"])
def test_prompts_near_the_last_position_get_what_is_left(tiny_model, letters, family):
    model = tiny_model(family)
    prompts = [[0, *[7, 9, 11, 13, 15] * 12][:length] for length in (60, 3, 61, 60, 58)]
    generation = Generation(beams=2, no_repeat_ngram_size=0, max_new_tokens=6)
    together = generation.complete(model.hf, letters, prompts, 64)
    assert together == [generation.complete(model.hf, letters, [prompt], 64)[0] for prompt in prompts]
    batches = list(generation._batches(prompts, 64, 4))
    assert batches == [([2], 3), ([0, 3], 4), ([4, 1], 6)]


def test_an_end_token_ends_a_text(tiny_model, letters):
    model = tiny_model("opt")
    model.hf.get_input_embeddings().weight.data[:] = 0  # tied: every logit is 0, and the first id, the end, wins
    assert Generation(beams=1, max_new_tokens=5).complete(model.hf, letters, [[0, 3]], 64) == [""]


def test_texts_and_numbers_are_written(subject):
    scores = Generation(beams=2, max_new_tokens=4)(subject)
    lines = [json.loads(line) for line in (subject.folder / "generations.jsonl").read_text().splitlines()]
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
        "limit": None,
        "batch_size": None,
    }
    assert (scores.protocol["prompts"], scores.protocol["prompts_with_less_room"]) == (3, 0)
    assert "nrefs:var" in scores.protocol["bleu"]
    json.dumps(scores.protocol)


def test_a_limit_takes_prompts_evenly_spaced(subject):
    Generation(beams=1, max_new_tokens=2, limit=2)(subject)
    lines = (subject.folder / "generations.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == ["abc", "a"]  # of 3: the numbers 0 and 1.5, cut
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


def test_the_dense_texts_have_a_file_of_their_own(subject):
    subject.stage = "dense"
    Generation(beams=1, max_new_tokens=2)(subject)
    assert [path.name for path in subject.folder.glob("*.jsonl")] == ["generations_dense.jsonl"]


def test_a_tokenizer_that_cannot_end_a_text_is_refused_before_the_weights_are_read(letters):
    letters.eos_token = None
    with pytest.raises(BadInput, match=r"tokenizer of tiny has none.*eos_token"):
        Generation().check_tokenizer(letters, "tiny")


def test_data_without_prompts_is_refused(tiny_model, make_subject, subject):
    with pytest.raises(BadInput, match=r"evaluate=generation needs prompts.*use data=e2e, data=samsum or data=wikisql"):
        Generation().check(make_subject(tiny_model("opt")))
    subject.model.tokenizer = None
    with pytest.raises(BadInput, match="needs a tokenizer, and tiny_opt has none"):
        Generation().check(subject)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"beams": 0}, r"Generation\.beams=0 is not allowed; allowed: whole numbers of at least 1"),
        ({"max_new_tokens": 0}, r"Generation\.max_new_tokens=0"),
        ({"no_repeat_ngram_size": -1}, r"Generation\.no_repeat_ngram_size=-1"),
        ({"limit": 0}, r"Generation\.limit=0"),
        ({"batch_size": 0}, r"Generation\.batch_size=0"),
        ({"length_penalty": "x"}, r"Generation\.length_penalty='x' is not allowed; allowed: numbers"),
    ],
)
def test_bad_settings_are_refused(setting, message):
    with pytest.raises(BadInput, match=message):
        Generation(**setting)


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
