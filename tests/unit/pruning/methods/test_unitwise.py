"""Methods that remove neurons and heads by what reaches the layer that reads them."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prune_lab.errors import BadInput
from prune_lab.models.model import PrunableModel
from prune_lab.models.model_units import all_query_heads, all_values
from prune_lab.models.shrink import shrink
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.flap import Flap
from prune_lab.pruning.methods.minitron import Minitron
from prune_lab.pruning.methods.random import Random
from prune_lab.pruning.methods.taylor_units import TaylorUnits
from prune_lab.pruning.methods.wanda_units import WandaUnits
from prune_lab.pruning.methods.ziplm import ZipLM
from prune_lab.pruning.reached import check_reached
from prune_lab.pruning.result import PruningResult
from prune_lab.pruning.target import Target

METHODS = [
    WandaUnits(),
    Minitron(),
    Flap(),
    Flap(scope="layer"),
    ZipLM(),
    ZipLM(scope="model", bias=True),
    TaylorUnits(),
]


def prune(model: PrunableModel, method, target: Target, tokens: Tensor, **settings) -> PruningResult:
    return method.prune(PruningContext(model, target, Calibration(tokens, batch_size=4, **settings)))


def inputs_of(model: PrunableModel, tokens: Tensor) -> dict[str, Tensor]:
    """What the layers that read units get in a forward pass of the model, ``(samples, seqlen, in)``, by their names."""
    found: dict[str, Tensor] = {}
    hooks = []
    for block in model.blocks:
        for linear in (block.attention.out, block.mlp.down):

            def keep(_module, args, name=linear.name):
                found[name] = args[0].detach().double()

            hooks.append(linear.module.register_forward_pre_hook(keep))
    with torch.no_grad():
        model.hf(tokens)
    for hook in hooks:
        hook.remove()
    return found


@pytest.fixture
def scored(tiny_model, random_tokens) -> Callable[..., dict[str, Tensor]]:
    """``scored(formula)``: by the names of units, what a formula makes of the reader's weight and inputs, each one."""

    def score(model: PrunableModel, tokens: Tensor, formula: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
        found, inputs = {}, inputs_of(model, tokens)
        for each in Target("width", 0.5).units(model):
            linear = each.reader.linear
            columns = formula(linear.weight.double(), inputs[linear.name])  # (in,)
            found[each.name] = columns.view(each.count, -1)
        return found

    return score


def expect_lowest_gone(result: PruningResult, scores: dict[str, Tensor], *names: str) -> None:
    for name in names:
        keep = result.masks[name]
        assert scores[name][~keep].max() <= scores[name][keep].min()
        assert 0 < int((~keep).sum()) < len(keep)


@pytest.mark.parametrize(
    ("method", "formula", "of_head"),
    [
        (WandaUnits(), lambda w, x: w.abs().sum(0) * x.flatten(0, -2).norm(dim=0), lambda s: s.sum(1)),
        (Minitron(), lambda w, x: x.abs().mean(1).norm(dim=0), lambda s: s.norm(dim=1)),
        (Flap("layer"), lambda w, x: w.square().sum(0) * x.flatten(0, -2).var(0), lambda s: s.mean(1)),
        (Flap("layer", metric="ifv"), lambda w, x: x.flatten(0, -2).var(0), lambda s: s.mean(1)),
        (
            Flap("layer", metric="wifn"),
            lambda w, x: w.abs().mean(0) * x.flatten(0, -2).norm(dim=0),
            lambda s: s.mean(1),
        ),
    ],
    ids=["wanda_units", "minitron", "wifv", "ifv", "wifn"],
)
@pytest.mark.parametrize("pattern", ["neurons", "heads"])
def test_a_score_is_its_formula(tiny_model, random_tokens, scored, method, formula, of_head, pattern):
    model, tokens = tiny_model("llama"), random_tokens(6, 16)
    scores = {name: of_head(each) for name, each in scored(model, tokens, formula).items()}
    result = prune(model, method, Target(pattern, 0.5), tokens, propagate="dense")
    expect_lowest_gone(result, scores, *result.masks)


@pytest.mark.parametrize("order", ["vector", "first", "second", "mixed"])
def test_taylor_scores_are_their_formulas(tiny_model, random_tokens, order):
    model, tokens = tiny_model("llama"), random_tokens(6, 16)
    block = model.blocks[1]
    parameters = [linear.module.weight for linear in block.mlp.linears]
    gradients = []
    for sample in tokens[:4]:
        for parameter in parameters:
            parameter.requires_grad_(True).grad = None
        logits = model.hf(sample[None, :12]).logits[0]
        torch.nn.functional.cross_entropy(logits[:-1], sample[1:12]).backward()
        gradients.append([parameter.grad.clone() for parameter in parameters])
        for parameter in parameters:
            parameter.requires_grad_(False).grad = None
    expected = torch.zeros(48)
    for place, linear in enumerate(block.mlp.linears):
        grads = torch.stack([each[place] for each in gradients])
        first, second = linear.weight * grads.mean(0), linear.weight.square() * grads.square().mean(0)
        terms = {"vector": first, "first": first.abs(), "second": second, "mixed": (first - second / 2).abs()}[order]
        expected += terms.sum(0 if linear is block.mlp.down else 1).abs()  # of each row or column
    method = TaylorUnits(order, samples=4, seqlen=12)
    name = "model.layers.1.neurons"
    result = prune(model, method, Target("neurons", 0.5), tokens)
    expect_lowest_gone(result, {name: expected}, name)


def test_over_all_layers_columns_are_standardised_before_heads_are_averaged(tiny_model, random_tokens, scored):
    model, tokens = tiny_model("llama"), random_tokens(6, 16)
    fluctuation = scored(model, tokens, lambda w, x: w.square().sum(0) * x.flatten(0, -2).var(0))
    z = {name: ((each - each.mean()) / each.std()).mean(1) for name, each in fluctuation.items()}
    result = prune(model, Flap(), Target("width", 0.3), tokens, propagate="dense")
    lost = [z[name][~keep].max() for name, keep in result.masks.items() if not keep.all()]
    units = {each.name: each for each in Target("width", 0.3).units(model)}
    kept = min(z[name][keep].min() for name, keep in result.masks.items() if units[name].kind == "neurons")
    # a head that did not fit into the budget may be lower, a neuron may not
    assert max(lost) <= kept + 1e-9


def test_flap_keeps_the_mean_of_what_the_layer_computes(tiny_model, random_tokens):
    """With constant inputs nothing changes at all: their variance is zero."""
    model, tokens = tiny_model("llama"), random_tokens(6, 16)
    down = model.blocks[0].mlp.down
    inputs = inputs_of(model, tokens)[down.name].flatten(0, -2)
    before = inputs @ down.weight.double().T
    result = prune(model, Flap("layer"), Target("neurons", 0.5), tokens)
    keep = result.masks["model.layers.0.neurons"]
    after = (inputs * keep) @ down.weight.double().T + down.bias.double()
    torch.testing.assert_close(after.mean(0), before.mean(0), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(after, before, rtol=1e-2, atol=1e-2)
    assert result.layers[down.name].error == pytest.approx(
        float((after - before).square().sum() / before.square().sum()), rel=0.3
    )


def test_a_bias_that_is_there_is_added_to(tiny_model, random_tokens):
    model, tokens = tiny_model("opt"), random_tokens(6, 16)
    down = model.blocks[0].mlp.down
    down.write_bias(torch.arange(32.0))
    inputs = inputs_of(model, tokens)[down.name].flatten(0, -2)
    dense = down.weight.clone()
    keep = prune(model, Flap("layer"), Target("neurons", 0.5), tokens).masks["model.decoder.layers.0.neurons"]
    expected = torch.arange(32.0) + (dense.double() @ (inputs.mean(0) * ~keep)).float()
    torch.testing.assert_close(down.bias, expected, rtol=1e-4, atol=1e-4)


def test_a_family_without_biases_is_told_and_pruned_without(tiny_model, random_tokens, caplog):
    model = tiny_model("mistral")
    names = set(model.hf.state_dict())
    prune(model, Flap(), Target("width", 0.3), random_tokens(6, 16))
    assert "cannot give them one (model.layers.0." in caplog.text
    assert set(model.hf.state_dict()) == names
    caplog.clear()
    prune(tiny_model("mistral"), Flap(bias=False), Target("width", 0.3), random_tokens(6, 16))
    assert "cannot give" not in caplog.text


def error_of(result: PruningResult, model: PrunableModel, dense: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict:
    """The output errors of the layers that read units on inputs of the dense model, biases included."""
    errors = {}
    for block in model.blocks:
        for linear in (block.attention.out, block.mlp.down):
            x = inputs[linear.name].flatten(0, -2)
            bias = torch.zeros(linear.shape[0]) if linear.bias is None else linear.bias
            change = x @ (linear.weight - dense[linear.name]).double().T + bias.double()
            errors[linear.name] = float(change.square().sum())
    return errors


@pytest.mark.parametrize("seed", range(3))
def test_structured_obs_makes_less_error_than_flap_for_the_same_units(tiny_model, random_tokens, seed):
    """Whatever goes: with the same units and a free bias the least-squares weights cannot be worse."""
    tokens, target = random_tokens(8, 16, seed), Target("width", 0.4)
    errors = []
    for method in (Flap("layer"), _WithUnitsOfFlap("layer", bias=True, damping=1e-9)):
        model = tiny_model("llama", seed=seed)
        dense = {linear.name: linear.weight.clone() for linear in model.linears}
        inputs = inputs_of(model, tokens)
        result = prune(model, method, target, tokens, propagate="dense")
        errors.append((result, error_of(result, model, dense, inputs)))
    (flap, of_flap), (obs, of_obs) = errors
    assert all(torch.equal(flap.masks[name], obs.masks[name]) for name in flap.masks)
    assert all(of_obs[name] <= of_flap[name] * (1 + 1e-6) for name in of_flap)
    assert sum(of_obs.values()) < 0.9 * sum(of_flap.values())


class _WithUnitsOfFlap(ZipLM):
    """The least-squares weights for what FLAP chooses."""

    def solve(self, units, statistic, dropped, zero):
        from prune_lab.pruning.methods.unitwise import Solution
        from prune_lab.pruning.solvers.structured_obs import damped, refit_columns

        linear, second = units.reader.linear, statistic.value
        tokens = statistic.hessian.tokens
        variance = second.diagonal() * tokens / (tokens - 1)
        score = units.reader.gather(variance * linear.weight.double().square().sum(0), units.count)
        keep = torch.ones(units.count, dtype=torch.bool)
        keep[score.argsort(stable=True)[:dropped]] = False
        weight = refit_columns(linear.weight, damped(second, self.damping), units.reader.spread(keep))
        return Solution(keep, weight, (linear.weight.double() - weight) @ statistic.mean)


def test_structured_obs_finds_the_best_single_neuron_to_remove(tiny_model, random_tokens):
    tokens, name = random_tokens(6, 16), "model.layers.0.neurons"
    model = tiny_model("llama")
    down, inputs = model.blocks[0].mlp.down, inputs_of(model, tokens)
    x = inputs[down.name].flatten(0, -2)
    weight = down.weight.double()
    errors = []
    for neuron in range(48):
        keep = torch.arange(48) != neuron
        best = torch.linalg.lstsq(x[:, keep], x @ weight.T).solution.T
        errors.append(float((x[:, keep] @ best.T - x @ weight.T).square().sum()))
    result = prune(model, ZipLM(damping=1e-9), Target("neurons", 1 / 48 + 1e-9, layers=[0, 1]), tokens)
    gone = int((~result.masks[name]).nonzero())
    assert errors[gone] == pytest.approx(min(errors), rel=1e-6)


def test_the_whole_model_gives_more_to_layers_whose_loss_is_cheap(tiny_model, random_tokens):
    """Where a block's neurons do next to nothing, they go first."""
    for method in (ZipLM(scope="model", weighting="absolute"), ZipLM(scope="model")):
        model, tokens = tiny_model("llama"), random_tokens(6, 16)
        block = model.blocks[1].mlp
        block.down.weight[:, :40] *= 1e-3
        masks = prune(model, method, Target("neurons", 0.25), tokens).masks
        gone = [int((~keep).sum()) for keep in masks.values()]
        assert sum(gone) <= 36
        assert sum(gone) >= 35
        assert gone[1] > 24


@pytest.mark.parametrize("method", [WandaUnits(scope="model"), Minitron(scope="model"), Flap()], ids=repr)
def test_units_that_are_gone_already_count_first_over_the_whole_model(tiny_model, random_tokens, method):
    """In a layer that is nearly empty their standardised scores are no lower than those of live units elsewhere."""
    model, tokens = tiny_model("llama"), random_tokens(6, 16)
    model.blocks[1].mlp.down.weight[:, 2:] = 0
    for linear in (model.blocks[1].mlp.up, model.blocks[1].mlp.gate):
        linear.weight[2:] = 0
    masks = prune(model, method, Target("neurons", 0.4), tokens).masks
    gone = [int((~keep).sum()) for keep in masks.values()]
    assert gone[1] >= 46 and sum(gone) == 57  # floor(0.4 * 144)


def test_neurons_that_are_never_active_go_first_whatever_their_weights(tiny_model, random_tokens):
    for method in (ZipLM(), ZipLM(scope="model"), ZipLM(swaps=3)):
        model = tiny_model("opt")
        up, down = model.blocks[1].mlp.up, model.blocks[1].mlp.down
        up.weight[:20], up.bias[:20] = 0, -1.0  # which ReLU makes zero
        down.weight[:, :20] = 1e3
        masks = prune(model, method, Target("neurons", 0.3), random_tokens(6, 16)).masks
        kept = list(masks.values())[1]
        assert int(kept[:20].sum()) <= max(0, 20 - int((~kept).sum())) and not kept[: min(20, int((~kept).sum()))].any()


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_what_is_left_is_shrunk_to_the_same_outputs(tiny_model, family, random_tokens, method):
    model, tokens = tiny_model(family), random_tokens(6, 16)
    target = Target("width", 0.4)
    result = prune(model, method, target, tokens)
    masked = model.hf(tokens).logits
    shrink(model, result.masks)
    torch.testing.assert_close(model.hf(tokens).logits, masked, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", [ZipLM(), ZipLM(bias=True), WandaUnits(), Flap("layer")], ids=repr)
def test_layer_by_layer_neurons_see_what_pruned_heads_leave(tiny_model, random_tokens, method):
    """With ``sequential=layer`` the down-projection is measured and fitted on other inputs."""
    tokens, found = random_tokens(16, 16), {}
    for sequential in ("block", "layer"):
        model = tiny_model("llama")
        result = prune(model, method, Target("width", 0.5), tokens, sequential=sequential)
        found[sequential] = result
    names = list(found["block"].layers)
    assert names == list(found["layer"].layers)
    down = "model.layers.0.mlp.down_proj"
    assert found["block"].layers[down].error != found["layer"].layers[down].error


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_zeros_of_single_weights_stay(tiny_model, random_tokens, method):
    model, tokens = tiny_model("llama"), random_tokens(6, 16)
    zeros = {}
    for linear in model.linears:
        linear.weight[:, ::3] *= torch.arange(linear.shape[0])[:, None] % 2
        zeros[linear.name] = linear.weight == 0
    prune(model, method, Target("width", 0.3), tokens)
    assert all(not linear.weight[zeros[linear.name]].any() for linear in model.linears)


def test_bad_settings_are_named():
    with pytest.raises(BadInput, match=r"Flap\.metric='std' .* wifv, ifv, wifn"):
        Flap(metric="std")
    with pytest.raises(BadInput, match=r"ZipLM\.damping=-1"):
        ZipLM(damping=-1)
    with pytest.raises(BadInput, match=r"ZipLM\.weighting='size'"):
        ZipLM(weighting="size")
    with pytest.raises(BadInput, match=r"WandaUnits\.scope='row' .* layer, model"):
        WandaUnits("row")
    with pytest.raises(BadInput, match=r"Minitron\.min_units=0"):
        Minitron(min_units=0)
    with pytest.raises(BadInput, match=r"TaylorUnits\.order='third'"):
        TaylorUnits("third")


def test_as_many_units_stay_in_every_layer_as_are_asked_for(tiny_model, random_tokens):
    model = tiny_model("llama")
    model.blocks[1].mlp.down.weight.mul_(1e-4)
    method = replace(Flap(bias=False, metric="wifv"), min_units=20)
    masks = prune(model, method, Target("neurons", 0.5), random_tokens(6, 16)).masks
    assert min(int(keep.sum()) for keep in masks.values()) >= 20
    assert sum(int((~keep).sum()) for keep in masks.values()) == 72


def test_random_neurons_and_heads_meet_the_share_of_parameters(tiny_model, random_tokens):
    model, target = tiny_model("llama"), Target("width", 0.4)
    masks = prune(model, Random("model"), target, random_tokens(4, 8)).masks
    assert {name.rpartition(".")[2] for name in masks} == {"heads", "neurons"}


def test_many_that_stay_are_no_failure_of_the_method(tiny_model, random_tokens, caplog):
    """Neither where each layer loses less for it, nor where neurons and heads have fewer than that."""
    for pattern, level, most in (("query_heads", 0.5, 4), ("neurons_query_heads", 0.9, 100)):
        model, target, method = tiny_model("llama"), Target(pattern, level), ZipLM(min_units=most)
        result = prune(model, method, target, random_tokens(6, 16))
        check_reached(model, target, method, result, {})
        assert all(bool(each.all()) for each in result.masks.values())
    assert "as few as 4 units, of which 2 go at a time, one of each key" in caplog.text


def test_structured_obs_refuses_heads_of_unequal_values(tiny_model, random_tokens):
    model = tiny_model("llama")
    values = all_values(model)[0]
    shrink(model, {values.name: torch.arange(values.count) > 2})
    for pattern in ("heads", "query_heads"):
        with pytest.raises(BadInput, match=r"heads have unequal numbers of values.*use method=flap"):
            ZipLM().check_model(model, Target(pattern, 0.5))
        prune(model, Flap(), Target(pattern, 0.5), random_tokens(6, 16))


def test_zeros_go_first_of_a_random_choice_also_where_one_key_has_more(tiny_model, random_tokens):
    model = tiny_model("llama")
    for units in all_query_heads(model):
        units.apply(torch.tensor([False, True, True, True]))
    result = prune(model, Random(), Target("query_heads", 0.5), random_tokens(6, 16))
    assert all(not keep[0] and int(keep.count_nonzero()) == 2 for keep in result.masks.values())
