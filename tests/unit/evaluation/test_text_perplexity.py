"""Perplexity of one more text: that of the same windows, wherever they come from."""

from dataclasses import replace

import pytest
import torch

from prune_lab.data.sources import FileText
from prune_lab.data.text import FileData
from prune_lab.errors import BadInput
from prune_lab.evaluation.evaluation import Subject
from prune_lab.evaluation.perplexity import Perplexity
from prune_lab.evaluation.text_perplexity import TextPerplexity


@pytest.fixture
def make(tmp_path, tiny_model, letters):
    """Makes a subject whose data evaluates on one of two texts."""
    (tmp_path / "one.txt").write_text("the quick brown fox jumps over the lazy dog. " * 9)
    (tmp_path / "two.txt").write_text("pack my box with five dozen liquor jugs, " * 9)

    def subject(name: str, bos: str) -> Subject:
        model = tiny_model("llama")
        model.tokenizer = letters
        files = {"calibration": str(tmp_path / "one.txt"), "evaluation": str(tmp_path / f"{name}.txt")}
        data = FileData(**files, samples=2, seqlen=16, limit_windows=5, bos=bos)
        return Subject(model, data.load(letters, vocab_size=64, seqlen_limit=64), torch.device("cpu"), tmp_path)

    return subject


@pytest.mark.parametrize("bos", ["text", "window", "none"])
def test_it_is_the_perplexity_of_data_with_that_text(make, tmp_path, bos):
    evaluation = TextPerplexity(text=FileText(str(tmp_path / "two.txt")), limit_windows=5)
    subject = make("one", bos)
    evaluation.check(subject)
    wanted = Perplexity()(make("two", bos))
    assert evaluation(subject).metrics == wanted.metrics
    assert evaluation(subject).metrics != Perplexity()(subject).metrics
    assert evaluation(subject).protocol == wanted.protocol


def test_its_key_is_that_of_the_text_not_of_the_data(make, tmp_path):
    evaluation = TextPerplexity(text=FileText(str(tmp_path / "two.txt")), limit_windows=5)
    assert evaluation.key(make("one", "text")) == Perplexity().key(make("two", "text"))


def test_it_is_read_again_for_other_data(make, tmp_path):
    evaluation = TextPerplexity(text=FileText(str(tmp_path / "two.txt")), limit_windows=5)
    keys = [evaluation.key(make("one", bos))["tokens"] for bos in ("text", "window")]
    assert keys[0] != keys[1]


def test_a_model_without_a_tokenizer_is_refused(make, tmp_path):
    evaluation = TextPerplexity(text=FileText(str(tmp_path / "two.txt")))
    with pytest.raises(BadInput, match="text needs a tokenizer, and opt-x has none"):
        evaluation.check_tokenizer(None, "opt-x")
    subject = make("one", "text")
    subject.model.tokenizer = None
    with pytest.raises(BadInput, match="needs a tokenizer"):
        evaluation.check(replace(subject))


def test_a_text_shorter_than_a_window_is_told_before_the_run(make, tmp_path):
    (tmp_path / "short.txt").write_text("a b c")
    with pytest.raises(BadInput, match=r"text.*16"):
        TextPerplexity(text=FileText(str(tmp_path / "short.txt"))).check(make("one", "text"))
