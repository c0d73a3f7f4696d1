import pytest
import torch

from prune_lab.models.units import all_neurons
from prune_lab.training.live_mask import LiveMasks, UnitMask


def masked(model, *, learned=True):
    units = all_neurons(model)
    return LiveMasks([UnitMask(each, torch.zeros(each.count), learned=learned) for each in units])


def half(count):
    return torch.arange(count) % 2 == 0


def test_masked_weights_are_those_of_a_model_with_zeros(tiny_model, random_tokens, family):
    """Values, and after `bake` the parameters themselves."""
    model, zeroed, tokens = tiny_model(family), tiny_model(family), random_tokens()
    live = masked(model)
    dense = zeroed.hf(tokens).logits
    assert torch.equal(model.hf(tokens).logits, dense)
    for mask, units in zip(live, all_neurons(zeroed), strict=True):
        mask.set(half(units.count))
        units.apply(half(units.count))
    expected = zeroed.hf(tokens).logits
    assert not torch.allclose(expected, dense)
    torch.testing.assert_close(model.hf(tokens).logits, expected, rtol=0, atol=0)
    live.bake()
    assert {name for name, _ in model.hf.named_parameters()} == {name for name, _ in zeroed.hf.named_parameters()}
    for name, tensor in model.hf.state_dict().items():
        assert torch.equal(tensor, zeroed.hf.state_dict()[name]), name


@pytest.mark.parametrize("family", ["opt", "gpt2", "llama"])
def test_the_gradient_of_a_score_is_the_sum_of_weight_times_gradient(tiny_model, random_tokens, family):
    """Over all matrices of the neuron; biases give none; masked neurons get theirs too."""
    model, tokens = tiny_model(family), random_tokens()
    live = masked(model)
    mask = live.masks[0]
    mask.set(half(len(mask.mask)))
    model.hf.train().requires_grad_(True)
    model.hf(tokens, labels=tokens).loss.backward()
    expected = torch.zeros(len(mask.mask))
    for site, dim in mask.units.members:
        original = site.module.parametrizations.weight.original
        # dL/d(masked weight) follows from the weight's own gradient where the mask is 1, and is 0 elsewhere: a masked
        # neuron gives nothing and gets nothing.
        product = original.detach() * original.grad
        product = product if isinstance(site.module, torch.nn.Linear) else product.T
        expected += product.sum(1 - dim)
    torch.testing.assert_close(mask.scores.grad, expected, rtol=1e-4, atol=1e-6)
    assert expected.abs().max() > 0


def test_scores_are_no_parameters_of_the_model(tiny_model):
    model = tiny_model("opt")
    live = masked(model)
    names = [name for name, _ in model.hf.named_parameters()]
    assert not any("scores" in name for name in names)
    assert len(live.scores) == 3
    assert len(masked(tiny_model("opt"), learned=False).scores) == 0
