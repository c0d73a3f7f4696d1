"""The scores of a dense model are kept, and forgotten when anything changes that they depend on."""

import json
import logging
import os

import pytest
import torch

from prune_lab.cache.folder import cache_folder
from prune_lab.evaluation.evaluation import Evaluation, Scores
from prune_lab.evaluation.perplexity import Perplexity
from prune_lab.evaluation.score_cache import cached_scores
from prune_lab.evaluation.suite import Suite


class Counting(Evaluation):
    """Measures how often it has measured."""

    def __init__(self, key: object = "k"):
        self.calls, self._key = 0, key

    def key(self, subject):
        return None if self._key is None else {"key": self._key}

    def __call__(self, subject):
        self.calls += 1
        return Scores({"calls": float(self.calls)}, {"by": "counting"})


@pytest.fixture
def subject(tiny_model, make_subject, random_tokens):
    return make_subject(tiny_model("llama"), random_tokens(2, 16))


def test_other_instructions_or_threads_measure_again(subject, monkeypatch):
    evaluation = Counting()
    assert cached_scores(evaluation, subject).metrics["calls"] == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    assert cached_scores(evaluation, subject).metrics["calls"] == 2
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert cached_scores(evaluation, subject).metrics["calls"] == 3


def kept():
    return sorted((cache_folder() / "store").glob("??/*/scores.json"))


def test_the_second_run_measures_nothing(subject):
    evaluation = Counting()
    first, second = (cached_scores(evaluation, subject) for _ in range(2))
    assert evaluation.calls == 1
    assert first == second == Scores({"calls": 1.0}, {"by": "counting"})


def test_another_process_would_get_the_same_numbers(subject):
    direct = Perplexity()(subject)
    assert cached_scores(Perplexity(), subject) == direct
    assert cached_scores(Perplexity(), subject) == direct
    assert len(kept()) == 1


def test_other_weights_are_measured_again(subject):
    evaluation = Counting()
    cached_scores(evaluation, subject)
    next(subject.model.linears).weight[0, 0] += 1
    cached_scores(evaluation, subject)
    assert evaluation.calls == 2


def test_another_configuration_is_measured_again(subject):
    for evaluation in (Counting("a"), Counting("b")):
        cached_scores(evaluation, subject)
        assert evaluation.calls == 1
    assert len(kept()) == 2


def test_a_model_may_be_known_by_another_name_than_its_fingerprint(subject):
    evaluation = Counting()
    for known_as in ("one", "two", None, "one"):
        cached_scores(evaluation, subject, known_as)
    assert evaluation.calls == 3


def test_an_evaluation_without_a_key_is_never_kept(subject):
    evaluation = Counting(None)
    for _ in range(2):
        cached_scores(evaluation, subject)
    assert evaluation.calls == 2
    assert not kept()


def test_the_parts_of_a_suite_are_kept_apart(subject):
    old, new = Counting("old"), Counting("new")
    cached_scores(Suite(old=old), subject)
    scores = cached_scores(Suite(old=old, new=new), subject)
    assert (old.calls, new.calls) == (1, 1)
    assert scores.metrics == {"calls": 1.0, "new/calls": 1.0}
    assert scores.protocol == {"old": {"by": "counting"}, "new": {"by": "counting"}}


@pytest.mark.parametrize(
    "content", ["", '{"metrics": {"calls', "[]", '{"metrics": 3, "protocol": {}}', '{"metrics": {}}']
)
def test_a_torn_file_is_measured_again_and_mended(subject, content, caplog):
    evaluation = Counting()
    cached_scores(evaluation, subject)
    [file] = kept()
    file.write_text(content)
    with caplog.at_level(logging.WARNING):
        assert cached_scores(evaluation, subject).metrics == {"calls": 2.0}
    assert "damaged" in caplog.text
    assert json.loads(file.read_text())["metrics"] == {"calls": 2.0}


@pytest.mark.skipif(os.name != "posix", reason="a file in place of a folder")
def test_scores_that_cannot_be_kept_are_still_returned(subject, caplog):
    (cache_folder() / "store").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert cached_scores(Counting(), subject).metrics == {"calls": 1.0}
    assert "not kept" in caplog.text
