"""Tokens that are kept are the tokenizer's, and know how much of the text they stand for."""

import numpy as np
import pytest

from prune_lab.data import tokenised
from prune_lab.data.tokenised import TokenisedText
from prune_lab.errors import BadInput
from prune_lab.models.load import Checkpoint

TEXT = "A line of text, with an é, a 漢字 and an emoji 🙂.\n" * 40


@pytest.fixture
def tokenizer():
    return Checkpoint(kind="reference", path="opt").load_tokenizer()


@pytest.fixture
def counted(tokenizer, monkeypatch):
    """The number of texts that were tokenised, as a list that grows."""
    calls = []
    encode = tokenised.encode
    monkeypatch.setattr(tokenised, "encode", lambda *given: calls.append(given) or encode(*given))
    return calls


def same(one, other) -> bool:
    return np.array_equal(one.ids, other.ids) and one.sha256 == other.sha256


def test_a_long_text_is_tokenised_once(tokenizer, counted, monkeypatch):
    fresh = TokenisedText(tokenizer, TEXT, "data.training")
    TokenisedText(tokenizer, TEXT, "data.training")
    assert len(counted) == 2  # short texts are not kept
    monkeypatch.setattr(tokenised, "LONG", len(TEXT))
    kept = [TokenisedText(tokenizer, TEXT, "data.training") for _ in range(2)]
    assert len(counted) == 3
    assert all(same(each, fresh) for each in kept)
    assert kept[1].ids.dtype == np.int64 and kept[1].ids.tolist() == tokenizer(TEXT)["input_ids"]


def test_another_text_or_tokenizer_is_tokenised_anew(tokenizer, counted, monkeypatch):
    monkeypatch.setattr(tokenised, "LONG", 1)
    TokenisedText(tokenizer, TEXT, "data.training")
    TokenisedText(tokenizer, TEXT[:-1], "data.training")
    tokenizer.add_tokens(["emoji"])
    changed = TokenisedText(tokenizer, TEXT, "data.training")
    assert len(counted) == 3
    assert changed.ids.tolist() == tokenizer(TEXT)["input_ids"]


@pytest.mark.parametrize("long", [1, 10**9])
def test_tokens_cover_the_bytes_that_the_tokenizer_says(tokenizer, counted, monkeypatch, long):
    monkeypatch.setattr(tokenised, "LONG", long)
    tokens, encoding = TokenisedText(tokenizer, TEXT, "data.evaluation"), tokenizer(TEXT)
    for kept in (0, 1, 2, 17, 18, 19, 20, len(tokens.ids) - 1, len(tokens.ids)):
        spans = [span for index in range(kept) if (span := encoding.token_to_chars(index)) is not None]
        end = len(TEXT) if kept == len(tokens.ids) else max((span.end for span in spans), default=0)
        assert tokens.covered_bytes(kept) == len(TEXT[:end].encode())
    assert len(counted) == 1
    assert TokenisedText(tokenizer, TEXT, "data.evaluation").covered_bytes(17) == tokens.covered_bytes(17)
    assert len(counted) == (1 if long == 1 else 2)


def test_half_of_a_surrogate_pair_is_bad_input(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenised, "LONG", 1)
    with pytest.raises(BadInput, match="half of a surrogate pair"):
        TokenisedText(tokenizer, "\ud800", "data.training")
