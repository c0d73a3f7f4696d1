import pytest
import torch

from prune_lab.models.model_units import all_heads, all_neurons, single_weights_of
from prune_lab.pruning.live_mask import LiveMasks, UnitMask

KINDS = {
    "neurons": all_neurons,
    "heads": all_heads,
    "weights": lambda model: [single_weights_of(linear) for linear in model.linears],
}


def masked(model, *, kind="neurons", learned=True):
    units = KINDS[kind](model)
    return LiveMasks([UnitMask(each, torch.zeros(each.shape), learned=learned) for each in units])


def half(shape):
    shape = (shape,) if isinstance(shape, int) else shape
    return (torch.arange(torch.Size(shape).numel()) % 2 == 0).view(shape)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_weights_are_those_of_a_model_with_zeros(tiny_model, random_tokens, family, kind):
    """Values, and after `bake` the parameters themselves."""
    model, zeroed, tokens = tiny_model(family), tiny_model(family), random_tokens()
    live = masked(model, kind=kind)
    dense = zeroed.hf(tokens).logits
    assert torch.equal(model.hf(tokens).logits, dense)
    for mask, units in zip(live, KINDS[kind](zeroed), strict=True):
        mask.set(half(units.shape))
        units.apply(half(units.shape))
    expected = zeroed.hf(tokens).logits
    assert not torch.allclose(expected, dense)
    torch.testing.assert_close(model.hf(tokens).logits, expected, rtol=0, atol=0)
    live.bake()
    assert {name for name, _ in model.hf.named_parameters()} == {name for name, _ in zeroed.hf.named_parameters()}
    for name, tensor in model.hf.state_dict().items():
        assert torch.equal(tensor, zeroed.hf.state_dict()[name]), name


def test_a_head_that_is_masked_adds_nothing(tiny_model, random_tokens, family):
    """The attention's output is the sum over heads, so masking one takes what it added away; all of them leave none."""
    model, tokens = tiny_model(family), random_tokens(1, 8)
    heads, block = all_heads(model)[0], model.blocks[0]
    seen = []
    block.attention.out.module.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach()))
    model.hf(tokens)
    keep = torch.arange(heads.count) != 1
    heads.apply(keep)
    model.hf(tokens)
    columns = heads.members[-1].spread(keep)
    torch.testing.assert_close(seen[1][..., columns], seen[0][..., columns], rtol=1e-4, atol=1e-5)
    assert not (seen[1][..., ~columns] @ block.attention.out.weight[:, ~columns].T).any()


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_the_gradient_of_a_weights_score_is_weight_times_gradient(tiny_model, random_tokens, family):
    """Of masked weights too, and no float copy of the mask is kept."""
    model, dense, tokens = tiny_model(family), tiny_model(family), random_tokens()
    live = masked(model, kind="weights")
    assert all(mask.mask.dtype == torch.bool for mask in live)
    mask = live.masks[0]
    mask.set(half(mask.units.shape))
    linear = dense.blocks[0].linears[0]
    weight = linear.weight.clone()
    linear.weight.mul_(half(mask.units.shape))
    for each in (model, dense):
        each.hf.requires_grad_(True)
        each.hf(tokens, labels=tokens).loss.backward()
    gradient = linear.seen(linear.module.weight.grad)
    torch.testing.assert_close(mask.scores.grad, gradient * weight, rtol=1e-4, atol=1e-6)
    original = mask.units.members[0].linear.module.parametrizations.weight.original
    torch.testing.assert_close(linear.seen(original.grad), gradient * half(mask.units.shape), rtol=1e-4, atol=1e-6)


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
    for linear, dim in ((member.linear, member.dim) for member in mask.units.members):
        original = linear.module.parametrizations.weight.original
        # dL/d(masked weight) follows from the weight's own gradient where the mask is 1, and is 0 elsewhere: a masked
        # neuron gives nothing and gets nothing.
        product = original.detach() * original.grad
        product = product if isinstance(linear.module, torch.nn.Linear) else product.T
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


@pytest.mark.parametrize("kind", KINDS)
def test_units_that_were_zero_before_go_first_and_never_come_back(tiny_model, kind):
    model = tiny_model("opt")
    dead = KINDS[kind](model)[0]
    dead.apply(half(dead.shape))
    live = masked(model, kind=kind)
    for mask in live:
        mask.keep_zeros()
    first, *others = live
    assert torch.equal(first.keep, half(dead.shape))
    assert torch.equal(first.ranking.isneginf(), ~half(dead.shape)) and not first.ranking[half(dead.shape)].any()
    assert all(bool(mask.keep.all()) and not mask.ranking.any() for mask in others)
    first.set(torch.ones(dead.shape, dtype=torch.bool))
    assert torch.equal(first.keep, half(dead.shape))
