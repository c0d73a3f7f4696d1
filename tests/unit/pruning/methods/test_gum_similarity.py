"""GUM's similarity of neurons and its penalty, by hand."""

import pytest
import torch

from prune_lab.data.samples import Samples
from prune_lab.pruning.methods.gum import GUM, similarity
from tests.unit.pruning.methods.trained import mask_of, train_on


def test_similarity_by_hand():
    """Neurons 0 and 1 are opposite, 2 is orthogonal to both, 3 is masked."""
    h = torch.tensor([[1.0, -2.0, 0.0, 1.0], [0.0, 0.0, 3.0, 1.0]])
    found = similarity(h.T @ h, mask_of(4, [True, True, True, False]))
    assert found.tolist()[:3] == pytest.approx([0.5, 0.5, 0.0], abs=1e-5)
    assert found[3] == pytest.approx(3 * 0.5**0.5 / 3, abs=1e-5)


def test_padding_does_not_enter_the_similarities(tiny_model, random_tokens):
    """The same samples, padded with something else."""
    found, lengths = [], torch.tensor([16, 9, 12, 2])
    for seed in (1, 2):
        tokens = torch.where(torch.arange(16) < lengths[:, None], random_tokens(4, 16), random_tokens(4, 16, seed))
        method, kept = GUM(), {}
        method.finish = lambda live, final, kept=kept: kept.update({mask.key: mask.running for mask in live})
        train_on(tiny_model("opt"), method, Samples(tokens, lengths), steps=1)
        found.append(kept)
    for name, gram in found[0].items():
        torch.testing.assert_close(gram, found[1][name])


def test_the_average_forgets_the_past_by_its_momentum_or_inverted():
    for inverted, expected in ((False, 0.8 * (0.2 * 1) + 0.2 * 9), (True, 0.2 * (0.8 * 1) + 0.8 * 9)):
        method, mask = GUM(momentum=0.8, inverted=inverted), mask_of(1)
        for square in (1.0, 9.0):
            mask.batch = torch.tensor([[square]])
            method.after_backward([mask], 0.0)
        assert float(mask.running) == pytest.approx(expected)


def test_the_penalty_decays_and_weighs_similar_neurons_more():
    method, mask = GUM(weight=2.0, uniqueness=3.0), mask_of(2)
    mask.similarity = torch.tensor([0.5, 0.0])
    for sparsity, decay in ((0.0, 2.0 / 0.25), (0.75, 2.0)):
        penalty = method.penalty([mask], sparsity, 0.75)
        assert float(penalty.detach()) == pytest.approx(decay * (0.5 * 2.5 + 0.5) / 2)
        mask.scores.grad = None
        penalty.backward()
        assert mask.scores.grad.tolist() == pytest.approx([decay / 2 * 0.25 * 2.5, decay / 2 * 0.25])
