"""Zeros are found, checked, and stay while a model is trained."""

import pytest
import torch

from prune_lab.errors import RunFailed
from prune_lab.models.model_units import all_neurons
from prune_lab.pruning.zeros import KeepZeros, check_finite, check_zeros, masks_of_zeros


def test_layers_without_zeros_have_no_mask(tiny_model):
    model = tiny_model("llama")
    assert not masks_of_zeros(model)
    linear = model.blocks[0].linears[2]
    linear.weight[0, 1] = linear.weight[3, 4] = 0
    masks = masks_of_zeros(model)
    assert list(masks) == [linear.name]
    assert (~masks[linear.name]).nonzero().tolist() == [[0, 1], [3, 4]]


def test_weights_that_come_back_are_counted(tiny_model):
    model = tiny_model("gpt2")
    first, second = model.blocks[0].linears[:2]
    first.weight[:, 0] = 0
    masks = masks_of_zeros(model)
    second.weight[0, 0] = 0  # no one asked for that
    check_zeros(model, masks, "pruning")
    first.weight[:2, 0] = 1
    count = first.shape[0]
    with pytest.raises(RunFailed, match=rf"^{first.name}: 2 of {count} weights that were zero before fine-tuning are"):
        check_zeros(model, masks, "fine-tuning")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_named(tiny_model, value):
    model = tiny_model("opt")
    check_finite(model, "training")
    model.blocks[1].linears[0].module.bias.data[3] = value
    with pytest.raises(RunFailed, match=r"layers\.1\.\S+\.bias: there are NaN or infinite values after training"):
        check_finite(model, "training")


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_zeros_of_the_layers_that_are_named_get_no_gradient_and_are_restored(tiny_model, family):
    model = tiny_model(family)
    named, other = model.blocks[0].linears[0], model.blocks[1].linears[0]
    for linear in (named, other):
        linear.weight[1] = 0
        linear.module.bias.data[1] = 0
    units = all_neurons(model)[2]
    units.apply(torch.arange(units.count) > 2)
    touched = {member.linear for member in units.members}
    zero = {linear: linear.weight == 0 for linear in (named, *touched)}
    keep = KeepZeros(model, [named.name, units.name])
    assert set(keep.zero) == {linear.name for linear in zero}
    assert all(torch.equal(keep.zero[linear.name], expected) for linear, expected in zero.items())
    for name, parameter in model.hf.named_parameters():
        if "embed" not in name:
            parameter.grad = torch.ones_like(parameter)
    keep.after_backward()
    for linear in model.linears:
        expected = ~zero[linear] if linear in zero else torch.ones(linear.shape, dtype=torch.bool)
        assert torch.equal(linear.seen(linear.module.weight.grad), expected.float()), linear.name
        biases = linear.module.bias.grad
        assert torch.equal(biases, (linear.module.bias != 0).float() if linear in touched else torch.ones_like(biases))
    for parameter in model.hf.parameters():
        parameter.data += 1
    keep.restore()
    for linear in zero:
        assert torch.equal(linear.weight == 0, zero[linear])
    assert bool((other.weight[1] == 1).all())
    assert bool((units.members[0].linear.module.bias[:3] == 0).all())
