"""Perplexity: the papers' number, on every family."""

import math

import pytest
import torch

from prune_lab.errors import BadInput, RunFailed
from prune_lab.evaluation import perplexity
from prune_lab.evaluation.perplexity import Perplexity


def naive(hf, windows):
    means = []
    for window in windows:
        log_probs = hf(input_ids=window[None]).logits[0].double().log_softmax(-1)
        means.append(-sum(log_probs[t, window[t + 1]].item() for t in range(len(window) - 1)) / (len(window) - 1))
    return math.exp(sum(means) / len(means))


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large(tiny_model, make_subject, random_tokens):
    model = tiny_model("llama")
    model.hf.lm_head.weight.zero_()
    scores = Perplexity()(make_subject(model, random_tokens(3, 16)))
    assert scores.metrics == {"perplexity": pytest.approx(64)}


def test_bits_per_byte_spread_the_bits_of_all_tokens_over_the_bytes(tiny_model, make_subject, random_tokens):
    model = tiny_model("llama")
    model.hf.lm_head.weight.zero_()  # 6 bits a token
    scores = Perplexity()(make_subject(model, random_tokens(2, 16), bytes_covered=96))
    assert scores.metrics["bits_per_byte"] == pytest.approx(2 * 16 * 6 / 96)


def test_it_equals_a_naive_loop(tiny_model, make_subject, random_tokens, family):
    model, windows = tiny_model(family), random_tokens(5, 24)
    assert Perplexity()(make_subject(model, windows)).metrics["perplexity"] == pytest.approx(naive(model.hf, windows))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_the_batch_size_changes_nothing(tiny_model, make_subject, random_tokens, batch_size):
    model, windows = tiny_model("opt"), random_tokens(5, 24)
    scores = Perplexity(batch_size=batch_size)(make_subject(model, windows))
    assert scores.metrics["perplexity"] == pytest.approx(naive(model.hf, windows))


def test_the_loss_is_summed_in_pieces(tiny_model, make_subject, random_tokens, monkeypatch):
    monkeypatch.setattr(perplexity, "LOSS_BYTES", 7 * 4 * 64)  # 7 rows of 64 logits, of 23
    model, windows = tiny_model("gpt2"), random_tokens(3, 24)
    assert Perplexity()(make_subject(model, windows)).metrics["perplexity"] == pytest.approx(naive(model.hf, windows))


def test_large_vocabularies_get_smaller_batches(tiny_model):
    hf = tiny_model("llama").hf
    assert perplexity._batch_size(hf, seqlen=512, vocab_size=8192) == 4
    assert perplexity._batch_size(hf, seqlen=512, vocab_size=262144) == 2
    assert perplexity._batch_size(hf, seqlen=4096, vocab_size=262144) == 1


def test_the_protocol_says_what_was_measured(tiny_model, make_subject, random_tokens):
    protocol = Perplexity()(make_subject(tiny_model("llama", torch.bfloat16), random_tokens(3, 16))).protocol
    assert protocol == {
        "definition": perplexity.DEFINITION,
        "windows": 3,
        "seqlen": 16,
        "dtype": "bfloat16",
        "text": {"source": "test"},
    }


def test_a_loss_that_is_not_finite_names_the_window(tiny_model, make_subject):
    model = tiny_model("llama")
    model.hf.get_input_embeddings().weight[7] = float("nan")
    windows = torch.zeros(4, 8, dtype=torch.int64)
    windows[2, 3] = 7
    with pytest.raises(RunFailed, match=r"window 2 \(of 4"):
        Perplexity(batch_size=3)(make_subject(model, windows))


def test_the_model_is_left_as_it_was(tiny_model, make_subject, random_tokens):
    model = tiny_model("llama")
    before = model.fingerprint()
    Perplexity()(make_subject(model, random_tokens(2, 16)))
    assert model.fingerprint() == before
    assert model.hf.device.type == "cpu"


def test_windows_that_the_model_cannot_take_are_refused(tiny_model, make_subject, random_tokens):
    with pytest.raises(BadInput, match="64 positions"):
        Perplexity()(make_subject(tiny_model("llama"), random_tokens(1, 65)))
    with pytest.raises(BadInput, match="at least two tokens"):
        Perplexity()(make_subject(tiny_model("llama"), random_tokens(1, 1)))
    with pytest.raises(BadInput, match=r"Perplexity\.batch_size=0"):
        Perplexity(batch_size=0)


def test_the_key_follows_the_tokens(tiny_model, make_subject, random_tokens):
    model = tiny_model("llama")
    keys = [Perplexity().key(make_subject(model, random_tokens(2, 16, seed=seed))) for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2]
