import pytest
import torch

from prune_lab.errors import BadInput
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.masks import keep_top
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.methods.random import Random
from prune_lab.pruning.target import Target


@pytest.fixture
def pruned(tiny_model, random_tokens):
    """``pruned(method, target)`` gives the dense weights and the masks, by linear layer."""

    def prune(method, target):
        model = tiny_model("llama")
        dense = {linear.name: linear.weight.clone() for linear in model.linears}
        masks = method.prune(PruningContext(model, target, Calibration(random_tokens(2, 8)))).masks
        for linear in model.linears:
            assert torch.equal(linear.weight, dense[linear.name] * masks[linear.name])
        return dense, masks

    return prune


def test_weights_of_a_layer_compete_with_each_other(pruned):
    dense, masks = pruned(Magnitude("layer"), Target(level=0.3))
    counts_differ = False
    for name, weight in dense.items():
        assert torch.equal(masks[name].flatten(), keep_top(weight.abs().flatten(), 0.3))
        assert int((~masks[name]).sum()) == int(0.3 * weight.numel())
        counts_differ |= len(masks[name].sum(1).unique()) > 1
    assert counts_differ  # rows of one layer lose different numbers of weights


def test_weights_of_a_row_compete_with_each_other(pruned):
    dense, masks = pruned(Magnitude("row"), Target(level=0.3))
    for name, weight in dense.items():
        assert torch.equal(masks[name], keep_top(weight.abs(), 0.3))
        assert ((~masks[name]).sum(1) == int(0.3 * weight.shape[1])).all()


def test_weights_of_the_whole_model_compete_with_each_other(pruned):
    dense, masks = pruned(Magnitude("model"), Target(level=0.3))
    total = sum(weight.numel() for weight in dense.values())
    assert sum(int((~mask).sum()) for mask in masks.values()) == int(0.3 * total)
    kept = torch.cat([dense[name].abs()[masks[name]] for name in dense])
    lost = torch.cat([dense[name].abs()[~masks[name]] for name in dense])
    assert lost.max() <= kept.min()
    assert len({round(float(mask.float().mean()), 3) for mask in masks.values()}) > 1


def test_the_sign_does_not_matter(tiny_model, random_tokens):
    model = tiny_model("opt")
    linear = model.blocks[0].linears[0]
    linear.weight.copy_(torch.tensor([-9.0, 1.0]).repeat(32, 16))
    Magnitude().prune(PruningContext(model, Target(level=0.5), Calibration(random_tokens(2, 8))))
    assert torch.equal(linear.weight, torch.tensor([-9.0, 0.0]).repeat(32, 16))


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:8"])
@pytest.mark.parametrize("scope", ["layer", "row"])
def test_a_pattern_keeps_the_largest_of_each_group(pruned, scope, pattern):
    target = Target(pattern)
    n, m = target.n_of_m
    dense, masks = pruned(Magnitude(scope), target)
    for name, weight in dense.items():
        groups, kept = weight.abs().unflatten(1, (-1, m)), masks[name].unflatten(1, (-1, m))
        assert (kept.sum(-1) == n).all()
        threshold = groups.topk(n).values[..., -1:]
        assert torch.equal(kept, groups >= threshold)


def test_an_unknown_scope_is_refused():
    with pytest.raises(BadInput, match=r"Magnitude\.scope='world'.*layer, row, model"):
        Magnitude("world")


@pytest.mark.parametrize("target", [Target("2:4"), Target(level=0.5, budget={"a": 0.1})])
def test_one_cut_for_the_model_cannot_follow_a_pattern_or_a_budget(target):
    with pytest.raises(BadInput, match=r"Magnitude\.scope='model' sets the sparsity"):
        Magnitude("model").check(target)


def test_one_cut_for_a_range_of_layers_counts_these_layers_only(tiny_model, random_tokens):
    model = tiny_model("opt")
    target = Target(level=0.5, layers=[1, 2])
    masks = Magnitude("model").prune(PruningContext(model, target, Calibration(random_tokens(2, 8)))).masks
    linears = model.blocks[1].linears
    assert set(masks) == {linear.name for linear in linears}
    assert sum(int((~mask).sum()) for mask in masks.values()) == sum(linear.weight.numel() for linear in linears) // 2


@pytest.mark.parametrize("kind", ["neurons", "heads"])
@pytest.mark.parametrize("name", ["opt", "llama", "gpt2"])
@pytest.mark.parametrize("method", [Magnitude(), Magnitude("model"), Random()], ids=["layer", "model", "random"])
def test_whole_units_go_with_all_that_belongs_to_them(tiny_model, random_tokens, kind, name, method):
    level = 0.25 if method == Magnitude("model") else 0.5  # of two heads a block, half may be all of one block
    model, target = tiny_model(name), Target(kind, level, layers=[0, 2])
    units = target.units(model)
    for member in (member for each in units for member in each.members):
        if member.bias is not None:
            member.bias.fill_(1.0)
    norms = {each.name: each.norm(2) for each in units}
    before = {key: tensor.clone() for key, tensor in model.hf.state_dict().items()}
    result = method.prune(PruningContext(model, target, Calibration(random_tokens(2, 8))))
    masks = result.masks
    assert list(masks) == [each.name for each in units]
    total = sum(each.count for each in units)
    assert sum(int(keep.count_nonzero()) for keep in masks.values()) == total - int(level * total)
    lost, kept = [], []
    for each in units:
        keep = masks[each.name]
        assert keep.shape == (each.count,)
        assert torch.equal(each.norm(2), norms[each.name] * keep)  # what stays is as it was
        lost.append(norms[each.name][~keep])
        kept.append(norms[each.name][keep])
        for member in each.members:
            if member.bias is not None:
                assert torch.equal(member.bias, member.spread(keep).float())
        if type(method) is Magnitude and method.scope == "layer":
            assert lost[-1].max() <= kept[-1].min()
    if type(method) is Magnitude and method.scope == "model":
        assert torch.cat(lost).max() <= torch.cat(kept).min()
    linears = {member.linear.name for each in units for member in each.members}
    assert set(result.layers) == linears
    unchanged = [key for key in before if not any(key.startswith(f"{linear}.") for linear in linears)]
    assert all(torch.equal(before[key], model.hf.state_dict()[key]) for key in unchanged)


def test_rows_mean_nothing_to_neurons():
    with pytest.raises(BadInput, match=r"Magnitude\.scope='row' has no meaning for neurons; use Magnitude.*=layer"):
        Magnitude("row").check(Target("neurons", 0.5))
    Magnitude("row").check(Target(level=0.5))
    Magnitude("layer").check(Target("neurons", 0.5))


def test_one_cut_that_would_empty_a_block_leaves_it_one(tiny_model, random_tokens):
    model = tiny_model("opt")
    for linear in model.blocks[0].mlp.linears:
        linear.weight.mul_(1e-3)
    context = PruningContext(model, Target("neurons", 0.6), Calibration(random_tokens(2, 8)))
    masks = Magnitude("model").prune(context).masks
    left = [int(keep.sum()) for keep in masks.values()]
    assert left[0] == 1
    assert sum(left) == sum(len(keep) for keep in masks.values()) - int(0.6 * sum(len(keep) for keep in masks.values()))


def test_a_cut_that_leaves_fewer_heads_than_blocks_is_refused(tiny_model, random_tokens):
    context = PruningContext(tiny_model("llama"), Target("heads", 0.8), Calibration(random_tokens(2, 8)))
    with pytest.raises(BadInput, match=r"one cut of 0\.8 .* 1 of 2\); use Magnitude\.scope=layer, or .* at most 0\.5"):
        Magnitude("model").prune(context)


@pytest.mark.parametrize("method", [Magnitude(), Random()], ids=repr)
def test_units_are_counted_by_the_decimal_number_that_was_written(tiny_model, random_tokens, method):
    """The floating-point product of 48 and a third is 16; the number that is written 0.333...3 is less."""
    target = Target("neurons", 1 / 3)
    masks = method.prune(PruningContext(tiny_model("llama"), target, Calibration(random_tokens(2, 8)))).masks
    assert [int((~keep).sum()) for keep in masks.values()] == [15] * 3


@pytest.mark.parametrize("method", [Magnitude(), Magnitude("model"), Random()], ids=repr)
def test_units_that_are_zero_already_are_gone_also_where_they_are_more_than_the_level(
    tiny_model, random_tokens, method
):
    model, target = tiny_model("gpt2"), Target("neurons", 0.25)
    dead = torch.arange(128) % 3 > 0
    for units in target.units(model):
        units.apply(~dead)
    masks = method.prune(PruningContext(model, target, Calibration(random_tokens(2, 8)))).masks
    assert all(torch.equal(keep, ~dead) for keep in masks.values())
