import math

import pytest
import torch

from prune_lab.data.samples import Samples
from prune_lab.errors import BadInput
from prune_lab.evaluation.training_loss import TrainingLoss


@pytest.fixture
def subject(tiny_model, random_tokens, make_subject):
    """Its training samples are ten windows, its evaluation others."""
    made = make_subject(tiny_model("opt"), random_tokens(2, 12))
    made.data.training = lambda: (Samples(torch.arange(120).view(10, 12) % 50), {"source": "a text"})
    return made


def test_it_is_the_mean_over_evenly_spread_training_samples(subject):
    scores = TrainingLoss(samples=4, batch_size=3)(subject)
    chosen = subject.data.training()[0].tokens[[0, 3, 6, 9]]
    with torch.no_grad():
        log_probabilities = subject.model.hf(chosen).logits[:, :-1].log_softmax(-1)
    loss = -float(log_probabilities.gather(-1, chosen[:, 1:, None]).mean())
    assert scores.metrics["training_loss"] == pytest.approx(loss, rel=1e-5)
    assert scores.metrics["training_perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert scores.protocol == {"samples": 4, "seqlen": 12, "text": {"source": "a text"}}


def test_there_may_be_fewer_samples_and_no_training_text(subject):
    assert TrainingLoss(samples=64)(subject).protocol["samples"] == 10
    subject.data.training = None
    assert TrainingLoss(samples=64)(subject).protocol["text"] == {"source": "calibration samples"}


def test_the_key_is_that_of_the_tokens(subject):
    key = TrainingLoss(samples=4).key(subject)
    assert key == TrainingLoss(samples=4).key(subject)
    assert key != TrainingLoss(samples=5).key(subject)
    subject.data.training = lambda: (Samples(torch.arange(1, 121).view(10, 12) % 50), {})
    assert key != TrainingLoss(samples=4).key(subject)


def test_no_samples_are_refused():
    with pytest.raises(BadInput, match=r"TrainingLoss\.samples=0"):
        TrainingLoss(samples=0)
