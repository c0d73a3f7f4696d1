"""Whose classes a teacher may have."""

from types import SimpleNamespace

import pytest

from prune_lab.training.teacher import _in_another_order


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        (["entailment", "neutral", "contradiction"], False),
        (["Entailment", "Neutral", "Contradiction"], False),
        (["contradiction", "entailment", "neutral"], True),
        (["LABEL_0", "LABEL_1", "LABEL_2"], False),
    ],
)
def test_the_same_classes_in_another_order_are_found(names, refused):
    own = SimpleNamespace(id2label=dict(enumerate(["entailment", "neutral", "contradiction"])))
    found = _in_another_order(SimpleNamespace(id2label=dict(enumerate(names))), own)
    assert found == ((", ".join(names), "entailment, neutral, contradiction") if refused else None)
