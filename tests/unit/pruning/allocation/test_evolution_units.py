"""The search for how many neurons and heads of each block go."""

from dataclasses import replace

import pytest
import torch

from prune_lab.errors import BadInput
from prune_lab.models.model_units import all_values
from prune_lab.models.shrink import shrink
from prune_lab.pruning.allocation.evolution import Evolution
from prune_lab.pruning.allocation.measured import Measured
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.latency.curve import Curve, TimeBudget
from prune_lab.pruning.masks import count_dropped
from prune_lab.pruning.methods.fitting import check_together
from prune_lab.pruning.methods.flap import Flap
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.methods.wanda_units import WandaUnits
from prune_lab.pruning.methods.ziplm import ZipLM
from prune_lab.pruning.reached import check_reached
from prune_lab.pruning.search.layers import layers_of
from prune_lab.pruning.search.levels import level_keys, make_levels
from prune_lab.pruning.target import Target
from prune_lab.pruning.unit_counts import uniform_counts

SHORT = {"generations": 6, "offspring": 6, "tokens": (24, 72), "step": 0.1}


def asked_of(model, target) -> int:
    """The parameters that a level is of all units."""
    return count_dropped(target.level, sum(each.count * each.parameters_each for each in target.units(model)))


def parameters_gone(model, target, budget) -> int:
    """Those that go by a budget."""
    layers = layers_of(model, target)
    return sum(count_dropped(budget[each.name], each.entries) * each.parameters_each for each in layers)


@pytest.mark.parametrize("inner", [ZipLM(), WandaUnits(), Flap(bias=False)], ids=repr)
def test_levels_are_what_the_method_leaves_of_the_dense_model(tiny_model, random_tokens, tmp_path, inner):
    model, target, calibration = tiny_model("llama"), Target("width", 0.5), Calibration(random_tokens(4, 16))
    layers = layers_of(model, target)
    counts = {layer.name: [0, 1] if layer.entries == 2 else [0, 7, 24] for layer in layers}
    keys = level_keys(model, calibration, target, repr(inner), layers, counts)
    database = make_levels(model, calibration, target, inner, layers, counts, keys, folder=tmp_path)
    for place in (1, 2):
        other = tiny_model("llama")
        asked = {name: each[min(place, len(each) - 1)] for name, each in counts.items()}
        entries = {layer.name: layer.entries for layer in layers}
        budget = {name: asked[name] / entries[name] + 1e-9 for name in asked}
        context = PruningContext(
            other, Target("width", 0.5, budget=budget), Calibration(random_tokens(4, 16), propagate="dense")
        )
        type(inner)(**vars(inner) | {"scope": "layer"}).prune(context)
        for layer, twin in zip(layers, layers_of(other, target), strict=True):
            found = database.weight(layer.linear, asked[layer.name])
            torch.testing.assert_close(found, twin.linear.weight, rtol=1e-5, atol=1e-6)
        assert all(database.weight(layer.linear, 0) is None for layer in layers)


def test_the_search_keeps_more_of_a_block_that_matters(tiny_model, random_tokens):
    """The neurons of one block are made to compute next to nothing: they pay for the others."""
    model, target = tiny_model("llama"), Target("neurons", 0.5)
    model.blocks[1].mlp.down.weight.mul_(1e-3)
    search = Evolution(inner=ZipLM(), seed=1, **SHORT | {"generations": 12})
    budget = search.budget(model, Calibration(random_tokens(6, 24)), target)
    spent = list(budget.values())
    assert spent[1] == max(spent) > 0.5
    assert min(spent) < 0.5


def test_the_same_seed_finds_the_same(tiny_model, random_tokens):
    found = [
        Evolution(inner=ZipLM(), seed=seed, **SHORT).budget(
            tiny_model("llama"), Calibration(random_tokens(4, 24)), Target("width", 0.5)
        )
        for seed in (0, 0)
    ]
    assert found[0] == found[1]


def test_queries_go_one_of_each_key(tiny_model, random_tokens):
    """The levels of a search, and what the method then prunes."""
    model, target = tiny_model("llama"), Target("neurons_query_heads", 0.5)
    model.blocks[2].attention.out.weight.mul_(1e-3)
    search = Evolution(inner=ZipLM(), seed=1, **SHORT | {"generations": 8})
    budget = search.budget(model, Calibration(random_tokens(6, 24)), target)
    units = target.units(model)
    counts = {each.name: count_dropped(budget[each.name], each.count) for each in units}
    assert {counts[each.name] % each.at_once for each in units} == {0}
    assert 0 <= asked_of(model, target) - parameters_gone(model, target, budget) < units[1].parameters_each
    pruned = ZipLM().prune(PruningContext(model, replace(target, budget=budget), Calibration(random_tokens(4, 16))))
    assert {name: int((~pruned.masks[name]).count_nonzero()) for name in counts} == counts


def test_rounds_and_trained_candidates_keep_the_parameters_exact_and_the_model_as_it_was(tiny_model, random_tokens):
    """A step of units ends at one unit, however often it is halved."""
    model, target = tiny_model("llama"), Target("width", 0.5)
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    search = Evolution(
        inner=ZipLM(), rounds=4, train_tokens=[0, 24], train_lr=1e-2, **SHORT | {"generations": 2, "offspring": 4}
    )
    search.check_model(model, target)
    calibration = Calibration(random_tokens(6, 24))
    search.check_calibration(calibration)
    budget = search.budget(model, calibration, target)
    neuron = target.units(model)[1].parameters_each
    assert 0 <= asked_of(model, target) - parameters_gone(model, target, budget) < neuron
    assert {name: count_dropped(level, 1000) for name, level in budget.items()} != dict.fromkeys(budget, 500)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.hf.state_dict().items())


@pytest.mark.parametrize("step", [0.1, 0.3])
def test_heads_that_cost_little_go_for_neurons_that_matter(tiny_model, random_tokens, step):
    """Of none a head goes where the search begins. Whatever the steps, what is missing of the level is no neuron."""
    model, target = tiny_model("llama"), Target("width", 0.4)
    for block in model.blocks[1:]:
        block.attention.out.weight.mul_(1e-4)
    units = target.units(model)
    assert {uniform_counts(units, target)[each.name] for each in units if each.kind == "heads"} == {0}
    search = Evolution(inner=ZipLM(), seed=0, **SHORT | {"generations": 16, "step": step})
    budget = search.budget(model, Calibration(random_tokens(6, 24)), target)
    gone = {each.name: count_dropped(budget[each.name], each.count) for each in units if each.kind == "heads"}
    assert sum(gone.values()) >= 1 and gone["model.layers.0.heads"] == 0
    assert 0 <= asked_of(model, target) - parameters_gone(model, target, budget) < units[1].parameters_each
    pruned = replace(target, budget=budget)
    result = ZipLM().prune(PruningContext(model, pruned, Calibration(random_tokens(4, 16))))
    check_reached(model, pruned, ZipLM(), result, {})


def timed(model, kind: str) -> Target:
    """Half the seconds of all units, of which a head takes as long as 25 neurons."""
    target = Target(kind, speedup=2)
    curves = {}
    for units in target.units(model):
        seconds = (25.0 if units.kind == "heads" else 1.0) * units.count
        curves[units.name] = Curve((0, units.count), (0.0, seconds))
    time = TimeBudget(10.0, curves, 0.0)
    return replace(target, time=replace(time, seconds=10 + (time.dense - 10) / 2))


@pytest.mark.parametrize("kind", ["width", "neurons"])
def test_of_a_target_of_time_the_predicted_seconds_are_kept(tiny_model, random_tokens, kind):
    model = tiny_model("llama")
    model.blocks[1].mlp.down.weight.mul_(1e-3)  # of little worth: it pays for the others
    target, search = timed(model, kind), Evolution(inner=ZipLM(), seed=1, **SHORT | {"generations": 12})
    search.check(target)
    search.check_model(model, target)
    budget = search.budget(model, Calibration(random_tokens(6, 24)), target)
    counts = {each.name: count_dropped(budget[each.name], each.entries) for each in layers_of(model, target)}
    assert 0.9 * target.time.seconds <= target.time.of(counts) <= target.time.seconds
    start = uniform_counts(target.units(model), target)
    assert counts["model.layers.1.neurons"] > start["model.layers.1.neurons"]
    # the method goes by these numbers
    pruned = ZipLM().prune(PruningContext(model, replace(target, budget=budget), Calibration(random_tokens(4, 16))))
    assert {name: int((~pruned.masks[name]).count_nonzero()) for name in counts} == counts


def test_bad_combinations_are_named():
    target = Target("width", 0.5)
    with pytest.raises(
        BadInput, match=r"Evolution\.inner=SparseGPT does not remove width .*method@Evolution\.inner=ziplm"
    ):
        Evolution(inner=SparseGPT()).check(target)
    with pytest.raises(BadInput, match=r"Evolution\.inner=ZipLM .*one statistic.*sparsegpt or wanda"):
        Evolution(inner=ZipLM()).check(Target(level=0.5))
    with pytest.raises(BadInput, match=r"Evolution\.inner=Flap .*moves biases.*Evolution\.inner\.bias=false"):
        Evolution(inner=Flap()).check(target)
    with pytest.raises(BadInput, match=r"Evolution\.initial=Measured.*allocation@Evolution\.initial=uniform"):
        Evolution(inner=ZipLM(), initial=Measured()).check(target)
    with pytest.raises(BadInput, match="blocks"):
        Evolution(inner=ZipLM()).check(Target("blocks", 0.5))
    Evolution(inner=ZipLM()).check(target)


@pytest.mark.parametrize(("inner", "most"), [(ZipLM(min_units=40), 8), (ZipLM(), 28)])
def test_no_layer_loses_more_than_its_least_units_and_highest_level_allow(tiny_model, random_tokens, inner, most):
    """Of 48 neurons in each of three blocks; one of them is worth next to nothing, and would lose nearly all."""
    model, target = tiny_model("llama"), Target("neurons", 0.4 if most > 8 else 0.1)
    model.blocks[1].mlp.down.weight.mul_(1e-3)
    search = Evolution(inner=inner, seed=1, max_level=0.6, **SHORT | {"generations": 12})
    budget = search.budget(model, Calibration(random_tokens(6, 24)), target)
    counts = [count_dropped(level, 48) for level in budget.values()]
    assert max(counts) == counts[1] <= most
    assert sum(counts) == 3 * count_dropped(target.level, 48)


def test_what_a_search_cannot_keep_is_refused():
    with pytest.raises(BadInput, match=r"sparsity.level=0.5 is more than .*max_level=0.4"):
        Evolution(inner=ZipLM(), max_level=0.4).check(Target("width", 0.5))
    search = Evolution(inner=ZipLM())
    with pytest.raises(BadInput, match=r"min_units=2 is more than the 1 that the search.*inner.min_units=2, too"):
        check_together(ZipLM(min_units=2), Target("width", 0.5), search, 0.0)
    check_together(ZipLM(min_units=2), Target("width", 0.5), Evolution(inner=ZipLM(min_units=2)), 0.0)


def test_what_the_method_of_the_levels_cannot_do_is_refused_at_the_start(tiny_model):
    """FLAP removes heads of unequal numbers of values, and structured OBS does not."""
    model, target = tiny_model("llama"), Target("heads", 0.5)
    values = all_values(model)[0]
    shrink(model, {values.name: torch.arange(values.count) > 2})
    with pytest.raises(BadInput, match=r"heads have unequal numbers of values"):
        Evolution(inner=ZipLM()).check_model(model, target)
    Evolution(inner=WandaUnits()).check_model(model, target)
