"""The loss with which PINS teaches itself, token by token."""

import math

import pytest
import torch
from torch.nn import functional

from prune_lab.pruning.methods.pins import SelfRegularization
from prune_lab.training.losses import Distillation


class Outputs:
    def __init__(self, logits):
        self.logits, self.hidden_states = logits, ()


@pytest.mark.parametrize("normalization", ["vocabulary", "batch"])
@pytest.mark.parametrize("padded", [False, True])
def test_the_loss_is_that_of_a_plain_loop_over_tokens(normalization, padded, monkeypatch):
    monkeypatch.setattr("prune_lab.training.losses._ON_CPU", 30)  # three rows at a time
    generator = torch.Generator().manual_seed(0)
    student = (3 * torch.randn(2, 5, 9, generator=generator)).requires_grad_()
    teacher, tokens = torch.randn(2, 5, 9, generator=generator), torch.randint(0, 9, (2, 5), generator=generator)
    targets = torch.rand(2, 5, generator=generator) < 0.6 if padded else None
    places = [(i, j) for i in range(2) for j in range(4) if targets is None or targets[i, j + 1]]
    assert 2 < len(places) <= 8 - 2 * padded

    def entropy(i, j):
        probabilities = student[i, j].detach().softmax(-1).tolist()
        return -sum(p * math.log(p) for p in probabilities)

    entropies = [entropy(i, j) for i, j in places]
    most = math.log(9) if normalization == "vocabulary" else 2 * sum(entropies) / len(entropies)
    total, alphas = 0.0, []
    for (i, j), uncertain in zip(places, entropies, strict=True):
        alpha = min(1.0, max(0.0, 1 - uncertain / most))
        goal = (teacher[i, j] / 1.5).softmax(-1)
        divergence = (goal * (goal.log() - (student[i, j] / 1.5).log_softmax(-1))).sum()
        total = total + alpha * 1.5**2 * divergence - (1 - alpha) * student[i, j].log_softmax(-1)[tokens[i, j + 1]]
        alphas.append(alpha)
    assert max(alphas) - min(alphas) > 0.2
    expected = total / len(places)
    loss = SelfRegularization(temperature=1.5, normalization=normalization)
    found = loss(Outputs(student), Outputs(teacher), tokens, targets)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    wanted = torch.autograd.grad(expected, student)[0]  # alpha has no gradient
    torch.testing.assert_close(torch.autograd.grad(found, student)[0], wanted)


def test_a_model_that_knows_nothing_learns_from_labels_and_a_sure_one_from_its_teacher():
    tokens, teacher = torch.tensor([[1, 2, 3]]), torch.randn(1, 3, 8)
    blank, sure = torch.zeros(1, 3, 8), torch.zeros(1, 3, 8)
    sure[..., 5] = 1e4
    loss = SelfRegularization()
    assert float(loss(Outputs(blank), Outputs(teacher), tokens)) == pytest.approx(math.log(8))
    divergence = Distillation(weight=1.0)(Outputs(sure), Outputs(teacher), tokens)
    assert float(loss(Outputs(sure), Outputs(teacher), tokens)) == pytest.approx(float(divergence))
    counted = torch.tensor([True, True, False])
    assert SelfRegularization(normalization="batch").confidence(sure[0], counted).tolist() == [1, 1, 1]
    same = SelfRegularization(normalization="batch").confidence(blank[0], counted)
    assert same.tolist() == pytest.approx([0.5, 0.5, 0.5])  # all at the mean


def test_with_a_confidence_of_one_half_everywhere_the_loss_is_that_of_distillation():
    """All tokens are as uncertain as their mean."""
    logits, teacher = torch.eye(6)[None].mul(4.0), torch.randn(1, 6, 6)
    tokens = torch.tensor([[0, 1, 2, 3, 4, 5]])
    found = SelfRegularization(normalization="batch")(Outputs(logits), Outputs(teacher), tokens)
    assert float(found) == pytest.approx(float(Distillation(weight=0.5)(Outputs(logits), Outputs(teacher), tokens)))
    assert float(found) != pytest.approx(float(functional.cross_entropy(logits[0, :-1], tokens[0, 1:])))


def test_each_text_has_its_own_share_by_how_sure_the_model_is_of_its_class():
    """By hand: ``alpha = 1 - H / log C``, and both parts of the loss of each text alone."""
    logits, teacher = (torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    labels = torch.tensor([0, 2, 1, 1, 0])
    expected = []
    for row, goal, label in zip(logits, teacher, labels, strict=True):
        said = row.softmax(-1)
        share = 1 + float((said * said.log()).sum()) / math.log(3)
        taught = (goal / 2).softmax(-1)
        divergence = float((taught * (taught.log() - (row / 2).log_softmax(-1))).sum())
        expected.append(share * 4 * divergence - (1 - share) * float(said[label].log()))
    found = SelfRegularization(temperature=2.0).class_prediction(Outputs(logits), Outputs(teacher), labels)
    assert float(found) == pytest.approx(sum(expected) / 5, rel=1e-5)
    sure = SelfRegularization().confidence(torch.tensor([[50.0, 0, 0], [0.0, 0, 0]]), torch.ones(2, dtype=torch.bool))
    assert sure.tolist() == pytest.approx([1, 0], abs=1e-6)
