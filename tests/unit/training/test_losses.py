import math
from types import SimpleNamespace

import pytest
import torch

from prune_lab.data.samples import Batch
from prune_lab.errors import BadInput
from prune_lab.training.losses import Distillation, language_loss


def test_only_real_targets_count():
    logits, tokens = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    real = torch.tensor([[True] * 5, [True, True, False, False, False]])
    logp = logits.log_softmax(-1)
    losses = [-logp[b, t, tokens[b, t + 1]] for b, t in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]]
    assert language_loss(logits, tokens, real) == pytest.approx(float(sum(losses)) / 5)


def test_the_divergence_is_a_mean_over_real_tokens_and_zero_from_oneself():
    distill = Distillation(weight=1.0, temperature=2.0)
    student, teacher, tokens = torch.randn(2, 4, 6), torch.randn(2, 4, 6), torch.zeros(2, 4, dtype=torch.int64)
    p, q = (teacher[0, 0] / 2).softmax(-1), (student[0, 0] / 2).softmax(-1)
    real = torch.tensor([[True, True, False, False], [False] * 4])
    by_hand = 4 * (p * (p / q).log()).sum()
    returned = [SimpleNamespace(logits=logits) for logits in (student, teacher)]
    assert distill(*returned, tokens, real) == pytest.approx(float(by_hand), rel=1e-5)
    assert distill.divergence(student, student) == pytest.approx(0.0, abs=1e-6)
    twice = distill.divergence(student.repeat(3, 1, 1), teacher.repeat(3, 1, 1))
    assert distill.divergence(student, teacher) == pytest.approx(float(twice), rel=1e-5)


def test_hidden_states_are_compared_where_a_target_is_predicted():
    """Two layers that differ by 1 and by 3 everywhere, and by anything where nothing is predicted."""
    tokens, logits = torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4, 6)
    targets = torch.tensor([[False, True, True, False], [False] * 4])
    mine = [torch.randn(2, 4, 8) for _ in range(2)]
    goal = [mine[0] + 1, mine[1] - 3]
    goal[0][1], goal[1][0, 2:] = 99.0, -99.0
    returned = [SimpleNamespace(logits=logits, hidden_states=states) for states in (mine, goal)]
    without = Distillation()(*returned, tokens, targets)
    assert Distillation(hidden=2.0)(*returned, tokens, targets) == pytest.approx(float(without) + 2 * (1 + 9) / 2)


def test_hidden_states_of_labelled_texts_are_compared_where_there_is_a_token():
    """The last two positions of the first text are padding, where anything may stand."""
    real = torch.tensor([[True, True, False, False], [True] * 4])
    batch = Batch(torch.zeros(2, 4, dtype=torch.int64), real=real, labels=torch.tensor([0, 2]))
    mine = [torch.randn(2, 4, 8) for _ in range(2)]
    goal = [mine[0] + 1, mine[1] - 3]
    goal[1][0, 2:] = 99.0
    returned = [SimpleNamespace(logits=torch.zeros(2, 3), hidden_states=states) for states in (mine, goal)]
    prediction, distance = Distillation(hidden=2.0, layers=[1]).losses(*returned, batch)
    assert prediction == pytest.approx(0.5 * math.log(3)) and distance == pytest.approx(2 * 9)


@pytest.mark.parametrize("settings", [{"weight": 1.5}, {"temperature": 0.0}, {"hidden": -1.0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(BadInput, match=r"Distillation\." + next(iter(settings))):
        Distillation(**settings)


@pytest.mark.parametrize("name", ["language", "divergence"])
def test_losses_and_gradients_do_not_depend_on_how_many_rows_are_taken_at_a_time(name, monkeypatch):
    """Against the whole logits in one piece, written out, with positions that predict nothing."""
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (torch.randn(3, 5, 11, generator=generator, dtype=torch.float64) for _ in range(2))
    tokens = torch.randint(11, (3, 5), generator=generator)
    targets = torch.rand(3, 5, generator=generator) < 0.6
    monkeypatch.setattr("prune_lab.training.losses._ON_CPU", 4 * 11)  # 15 rows in parts of 4

    def whole(student):
        student, counted = student[:, :-1], targets[:, 1:]
        if name == "language":
            per_token = -student.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
        else:
            p, q = (teacher[:, :-1] / 3).softmax(-1), (student / 3).softmax(-1)
            per_token = 9 * (p * (p / q).log()).sum(-1)
        return per_token[counted].mean()

    def parts(student):
        if name == "language":
            return language_loss(student, tokens, targets)
        return Distillation(temperature=3.0).divergence(student, teacher, targets)

    results = []
    for loss in (whole, parts):
        student = logits.clone().requires_grad_()
        value = loss(student)
        value.backward()
        results.append((value.detach().float(), student.grad))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-4, atol=1e-6)
