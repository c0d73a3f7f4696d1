"""A suite: its parts, and what becomes of their metrics."""

import pytest

from prune_lab.errors import BadInput
from prune_lab.evaluation.evaluation import Evaluation, Scores
from prune_lab.evaluation.suite import Suite


class Constant(Evaluation):
    def __init__(self, **metrics):
        self.metrics, self.prepared, self.checked = metrics, 0, []

    def prepare(self):
        self.prepared += 1

    def check(self, subject):
        self.checked.append(subject)

    def __call__(self, subject):
        return Scores(dict(self.metrics), {"constant": True})


def test_metrics_keep_their_names_and_protocols_get_their_parts(tiny_model, make_subject):
    scores = Suite(one=Constant(a=1.0), two=Constant(b=2.0))(make_subject(tiny_model("opt")))
    assert scores.metrics == {"a": 1.0, "b": 2.0}
    assert scores.protocol == {"one": {"constant": True}, "two": {"constant": True}}


def test_a_metric_that_comes_twice_is_told_apart(tiny_model, make_subject):
    scores = Suite(one=Constant(a=1.0), two=Constant(a=2.0, b=3.0))(make_subject(tiny_model("opt")))
    assert scores.metrics == {"a": 1.0, "two/a": 2.0, "b": 3.0}


def test_texts_of_one_kind_follow_one_another(tiny_model, make_subject):
    class Writing(Constant):
        def __call__(self, subject):
            return Scores({"a": 1.0}, {}, {"continuations": [{"prompt": "x", **self.metrics}]})

    scores = Suite(one=Writing(n=1), two=Constant(b=2.0), three=Writing(n=2))(make_subject(tiny_model("opt")))
    assert scores.texts == {"continuations": [{"prompt": "x", "n": 1}, {"prompt": "x", "n": 2}]}


def test_every_part_is_prepared():
    parts = {"one": Constant(), "two": Constant()}
    Suite(**parts).prepare()
    assert [part.prepared for part in parts.values()] == [1, 1]


def test_every_part_is_shown_the_subject(tiny_model, make_subject):
    subject = make_subject(tiny_model("opt"))
    parts = {"one": Constant(), "two": Constant()}
    Suite(**parts).check(subject)
    assert [part.checked for part in parts.values()] == [[subject], [subject]]


def test_a_part_can_be_switched_off_but_not_all(tiny_model, make_subject):
    assert Suite(one=None, two=Constant(a=1.0))(make_subject(tiny_model("opt"))).metrics == {"a": 1.0}
    with pytest.raises(BadInput, match="no part"):
        Suite(one=None)
