"""Metrics of labels against what is computed by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from prune_lab.data.samples import Labelled, Samples
from prune_lab.data.tokens import Data
from prune_lab.errors import BadInput
from prune_lab.evaluation.classification import Classification, of_classes, of_values
from prune_lab.evaluation.evaluation import Subject
from prune_lab.models.heads import Labels


def test_two_classes_by_hand():
    truth, said = np.array([1, 1, 1, 0, 0, 0, 0, 1]), np.array([1, 0, 1, 0, 1, 0, 0, 0])
    tp, fp, fn, tn = 2, 1, 2, 3
    found = of_classes(truth, said, 2)
    assert found["accuracy"] == (tp + tn) / 8
    assert found["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    below = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert found["matthews"] == pytest.approx((tp * tn - fp * fn) / below)


def test_f1_of_several_classes_is_the_mean_over_them():
    found = of_classes(np.array([0, 1, 2, 2]), np.array([0, 2, 2, 2]), 3)
    assert found["f1"] == pytest.approx((1 + 0 + 0.8) / 3)
    assert of_classes(np.array([0, 0]), np.array([1, 1]), 2) == {"accuracy": 0.0, "f1": 0.0, "matthews": 0.0}


def test_correlations_of_values_by_hand():
    truth, said = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, 1.5, 9.0])
    centred = truth - truth.mean(), said - said.mean()
    pearson = (centred[0] * centred[1]).sum() / np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    assert of_values(truth, said) == {"pearson": pytest.approx(pearson), "spearman": pytest.approx(1.0)}
    assert of_values(truth, np.ones(4)) == {"pearson": 0.0, "spearman": 0.0}


def subject(model, labels=(0, 1, 2, 0, 1), lengths=(12, 3, 7, 5, 9), seed=0):
    tokens = torch.randint(5, 64, (5, 12), generator=torch.Generator().manual_seed(seed))
    samples = Samples(tokens, torch.tensor(lengths), labels=torch.tensor(labels))
    samples.tokens.masked_fill_(~samples.real, 1)
    labelled = Labelled(samples, samples, Labels(("a", "b", "c")))
    return Subject(model, Data(tokens, tokens, None, {}, labelled=labelled), torch.device("cpu"), None)


def test_batches_and_padding_change_nothing(tiny_model, encoder_family):
    given = subject(tiny_model(encoder_family))
    one, many = (Classification(batch_size=size)(given) for size in (1, 5))
    for first, second in zip(one.texts["predictions"], many.texts["predictions"], strict=True):
        assert first["label"] == second["label"] and first["predicted"] == second["predicted"]
        assert first["scores"] == pytest.approx(second["scores"], abs=1e-3)
    alone = given.data.labelled.evaluation
    for row, told in enumerate(one.texts["predictions"]):
        with torch.no_grad():
            logits = given.model.hf(alone.tokens[row : row + 1, : alone.lengths[row]]).logits[0]
        assert list(told["scores"].values()) == pytest.approx(logits.tolist(), abs=1e-3)
        assert told["predicted"] == "abc"[int(logits.argmax())]
    assert [row["label"] for row in one.texts["predictions"]] == list("abcab")


def test_scores_are_known_by_texts_and_labels(tiny_model):
    model = tiny_model("bert")
    key = Classification().key(subject(model))
    assert key == Classification().key(subject(model))
    assert key != Classification().key(subject(model, labels=(1, 1, 2, 0, 1)))
    assert key != Classification().key(subject(model, seed=1))
    assert key != Classification(batch_size=3).key(subject(model))
    longer, types, named = subject(model, lengths=(12, 4, 7, 5, 9)), subject(model), subject(model)
    types.data.labelled.evaluation.types = torch.ones(5, 12, dtype=torch.int64)
    named.data.labelled = replace(named.data.labelled, labels=Labels(("a", "b", "d")))
    for other in (longer, types, named):
        assert key != Classification().key(other)


@pytest.mark.parametrize("values", [False, True])
def test_every_metric_is_described(tiny_model, values):
    given = subject(tiny_model("bert"))
    if values:
        given.data.labelled.evaluation.labels = torch.arange(5.0)
        given.data.labelled = replace(given.data.labelled, labels=Labels(("score",), values=True))
        given.model.hf.classifier = torch.nn.Linear(given.model.hf.config.hidden_size, 1)
    evaluation = Classification()
    infos = [evaluation.info_of(name) for name in evaluation(given).metrics]
    assert None not in infos and len({info.label for info in infos}) == len(infos)
    assert all(info.better for info in infos if info.quality)


def test_texts_without_labels_are_refused(tiny_model):
    given = subject(tiny_model("bert"))
    given.data.labelled = None
    with pytest.raises(BadInput, match="evaluate=classification needs texts with labels; use data=classification"):
        Classification().check(given)
