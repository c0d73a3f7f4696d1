"""The token that begins a text stands where it was asked for, is never a target, and bytes are counted without it."""

import json
import math

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from prune_lab.data.arrays import Tokens
from prune_lab.data.forms import Template
from prune_lab.data.pairs import PairData
from prune_lab.data.sources import HubRows
from prune_lab.data.text import FileData
from prune_lab.errors import BadInput
from prune_lab.evaluation.evaluation import Subject
from prune_lab.evaluation.perplexity import Perplexity
from prune_lab.models.families import FAMILIES
from prune_lab.run.runner import execute

START, END, LIMITS = 50, 52, {"vocab_size": 64, "seqlen_limit": 64}


@pytest.fixture
def files(tmp_path):
    """``files(**keys)`` describes texts of the words 0 to 39, to calibrate on, and 0 to 10, to evaluate on."""
    for name, words in {"calibration": range(40), "evaluation": range(11)}.items():
        (tmp_path / f"{name}.txt").write_text(" ".join(f"w{word}" for word in words))
    paths = {name: str(tmp_path / f"{name}.txt") for name in ("calibration", "evaluation")}
    return lambda **keys: FileData(**paths, **{"samples": 9, "seqlen": 4} | keys)


@pytest.fixture
def without_start(words):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words.backend_tokenizer, unk_token="<unk>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    yield tokenizer
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", START)]
    )


def test_a_text_begins_with_it_once(files, words):
    data = files(bos="text").load(words, **LIMITS)
    assert data.evaluation.tolist() == [[START, 0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10]]
    assert (data.evaluation_tokens, data.evaluation_bytes) == (11, len("w0 w1 w2 w3 w4 w5 w6 w7 w8 w9 w10"))
    assert data.protocol["bos"] == {"mode": "text", "token": START}
    default = files().load(words, **LIMITS)
    assert torch.equal(default.evaluation, data.evaluation) and torch.equal(default.calibration, data.calibration)


@pytest.mark.parametrize("keys", [{"bos": "window"}, {}])
def test_every_window_begins_with_it_and_has_one_token_less_of_the_text(files, words, keys):
    data = files(**keys).load(words, **LIMITS, default_bos="window")
    assert data.evaluation.tolist() == [[START, 0, 1, 2], [START, 3, 4, 5], [START, 6, 7, 8]]
    assert (data.evaluation_tokens, data.evaluation_bytes) == (9, len("w0 w1 w2 w3 w4 w5 w6 w7 w8"))
    assert data.protocol["evaluation"]["dropped_tokens"] == 2
    assert data.protocol["bos"] == {"mode": "window", "token": START}
    for sample in data.calibration.tolist():
        assert sample == [START, *range(sample[1], sample[1] + 3)]
    trained, _ = data.training()
    assert trained.tokens[:, 0].eq(START).all() and trained.tokens[:, 1:].flatten().tolist() == list(range(39))


def test_none_is_nowhere(files, words):
    data = files(bos="none").load(words, **LIMITS, default_bos="window")
    assert data.evaluation.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert data.evaluation_tokens == 8 and START not in data.calibration


def test_random_documents_have_it_in_front_too(files, words):
    data = files(bos="window", sampling="documents").load(words, **LIMITS)
    for sample in data.calibration.tolist():
        assert sample == [START, *range(sample[1], sample[1] + 3)]


def test_the_longest_window_is_a_whole_text_and_the_token(files, words):
    assert files(bos="window", seqlen=12).load(words, **LIMITS).evaluation.tolist() == [[START, *range(11)]]
    with pytest.raises(BadInput, match=r"has 11 tokens, fewer than one window of .*=13; .*data\.seqlen=12 or less"):
        files(bos="window", seqlen=13).load(words, **LIMITS)


def test_a_tokenizer_without_one_is_refused_where_it_is_asked_for_and_noted_where_the_family_needs_it(
    files, without_start, caplog
):
    with pytest.raises(BadInput, match=r"FileData\.bos='window' needs a tokenizer with a token that begins a text"):
        files(bos="window").load(without_start, **LIMITS)
    data = files().load(without_start, **LIMITS, default_bos="window")
    assert data.protocol["bos"] == {"mode": "text", "token": None} and data.evaluation_tokens == 8
    assert "need the token that begins a text before every window" in caplog.text


@pytest.mark.parametrize("value", ["both", True, 1])
def test_other_places_are_refused(files, value):
    with pytest.raises(BadInput, match=r"FileData\.bos=.* is not allowed; allowed: text, window, none, or null"):
        files(bos=value)


def test_arrays_are_taken_as_they_are(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, 4), dtype=int))
    with pytest.raises(BadInput, match=r"Tokens\.bos='window' is not allowed; allowed: null"):
        Tokens(calibration=str(tmp_path / "a.npy"), evaluation=str(tmp_path / "a.npy"), bos="window")


@pytest.mark.parametrize(
    ("mode", "windows", "prompt"),
    [
        ("text", [[START, 1, 2, END], [START, 3, 4, END]], [START, 1]),
        ("window", [[START, 1, 2, END], [START, START, 3, 4]], [START, 1]),
        ("none", [[1, 2, END, 3]], [1]),
    ],
)
def test_prompts_are_texts_and_their_windows_are_windows(tmp_path, words, mode, windows, prompt):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer, bos_token="<s>", unk_token="<unk>", eos_token="</s>"
    )
    rows = [{"a": "w1", "b": "w2"}, {"a": "w3", "b": "w4"}]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = PairData(
        training=HubRows("a/b", "x.csv", "train"), test=HubRows("a/b", "x.csv", "test"), root=str(tmp_path),
        forms=[Template("{a}", "{b}")], samples=3, seqlen=4, bos=mode,
    )  # fmt: skip
    data = given.load(tokenizer, **LIMITS)
    assert data.evaluation.tolist() == windows
    assert data.pairs[0].tokens == prompt
    assert all((row[0] == START) for row in data.calibration.tolist()) or mode != "window"


def test_bits_per_byte_count_every_token_of_the_text_once_and_no_other(files, words, tiny_model, tmp_path):
    model = tiny_model("gemma3_text")
    data = files(bos="window").load(words, **LIMITS)
    scores = Perplexity()(Subject(model, data, torch.device("cpu"), tmp_path))
    with torch.no_grad():
        chances = model.hf(data.evaluation).logits.log_softmax(-1)
    nats = [-chances[row, place - 1, data.evaluation[row, place]].item() for row in range(3) for place in (1, 2, 3)]
    assert scores.metrics["bits_per_byte"] == pytest.approx(sum(nats) / math.log(2) / data.evaluation_bytes, rel=1e-5)
    assert scores.metrics["perplexity"] == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-5)


def test_families_that_need_it_say_so():
    assert {name for name, family in FAMILIES.items() if family.bos == "window"} == {"gemma3_text"}


@pytest.mark.parametrize(("family", "mode"), [("gemma3_text", "window"), ("llama", "text")])
def test_a_run_follows_the_family_and_says_what_it_did(configured, model_folder, files, words, tmp_path, family, mode):
    folder, given = model_folder(family), files()
    words.save_pretrained(folder)
    config = configured(
        "model=local", f"model.path={folder}", "data=files", f"data.calibration={given.calibration}",
        f"data.evaluation={given.evaluation}", "data.samples=2", "data.seqlen=4", "method=wanda", "tracker=jsonl",
        "evaluate=perplexity", "device=cpu",
    )  # fmt: skip
    record = execute(config, tmp_path / "run")
    assert record["protocol"]["data"]["bos"] == {"mode": mode, "token": START}
