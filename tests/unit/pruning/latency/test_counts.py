"""How many units go so that a time is reached."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prune_lab.errors import BadInput
from prune_lab.pruning.allocation.division import divide_budget
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.latency.curve import Curve, TimeBudget
from prune_lab.pruning.methods.flap import Flap
from prune_lab.pruning.methods.taylor_units import TaylorUnits
from prune_lab.pruning.methods.wanda_units import WandaUnits
from prune_lab.pruning.methods.ziplm import ZipLM
from prune_lab.pruning.target import Target
from prune_lab.pruning.unit_counts import counts_by_score, uniform_counts

PARTS = st.lists(st.tuples(st.integers(0, 12), st.floats(0, 100)), min_size=1, max_size=5)


@given(st.lists(PARTS, min_size=1, max_size=4), st.integers(0, 30))
def test_of_all_choices_within_the_budget_it_is_the_best(parts, spare):
    options = {str(index): [(float(cost), error) for cost, error in each] for index, each in enumerate(parts)}
    budget = sum(min(cost for cost, _ in each) for each in options.values()) + float(spare)
    best = min(
        sum(error for _, error in chosen)
        for chosen in product(*options.values())
        if sum(cost for cost, _ in chosen) <= budget
    )
    chosen = divide_budget(options, budget, buckets=spare or 1)
    picked = [options[name][index] for name, index in chosen.items()]
    assert sum(cost for cost, _ in picked) <= budget
    assert sum(error for _, error in picked) == pytest.approx(best)


@given(
    st.lists(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=1, max_size=4), min_size=1, max_size=4)
)
def test_a_budget_of_any_costs_holds(parts):
    options = {str(index): each for index, each in enumerate(parts)}
    budget = sum(min(cost for cost, _ in each) for each in options.values()) + 3.0
    chosen = divide_budget(options, budget, buckets=100)
    assert sum(options[name][index][0] for name, index in chosen.items()) <= budget * (1 + 1e-9)


def test_costs_above_the_budget_are_refused():
    with pytest.raises(ValueError, match="cost 3"):
        divide_budget({"a": [(3.0, 0.0)]}, 2.0)


def timed(model, pattern: str, speedup: float, head: float = 8.0, bend: float = 1.0) -> Target:
    """A target of a time, of which a head takes some seconds, a neuron less, and the rest 3."""
    target = Target(pattern, speedup=speedup)
    curves = {}
    for each in target.units(model):
        middle, one = each.count // 2, head if each.kind == "heads" else 1.0
        ends = (0.0, bend * one * middle, one * each.count)
        curves[each.name] = Curve((0, middle, each.count), ends)
    budget = TimeBudget(3.0, curves, 0.0)
    return replace(target, time=replace(budget, seconds=budget.dense / speedup))


@pytest.mark.parametrize("pattern", ["neurons", "heads", "width"])
def test_the_same_share_goes_of_every_block_and_no_more_than_it_takes(tiny_model, pattern):
    model = tiny_model("opt")
    target = timed(model, pattern, 1.4)
    units = target.units(model)
    counts = uniform_counts(units, target)
    assert target.time.fits(target.time.of(counts))
    for kind in {each.kind for each in units}:
        assert len({counts[each.name] for each in units if each.kind == kind}) == 1
    assert not target.time.fits(target.time.of({name: max(0, number - 1) for name, number in counts.items()}))


def test_scores_decide_until_the_time_is_reached(tiny_model):
    model = tiny_model("llama")
    target = timed(model, "width", 1.5)
    units = target.units(model)
    generator = torch.Generator().manual_seed(0)
    scores = {each.name: torch.rand(each.count, generator=generator) for each in units}
    counts = counts_by_score(units, scores, target, WandaUnits(scope="model"))
    flat = sorted((float(score), each.name) for each in units for score in scores[each.name])
    expected = {each.name: 0 for each in units}
    highest = {each.name: float(scores[each.name].max()) for each in units}
    for score, name in flat:
        if target.time.fits(target.time.of(expected)):
            break
        if score < highest[name]:
            expected[name] += 1
    assert counts == expected


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_what_cannot_be_reached_is_refused_with_the_largest_speed(tiny_model, scope):
    model = tiny_model("llama")
    target = timed(model, "neurons", 500.0)
    units = target.units(model)
    with pytest.raises(BadInput, match=r"Target\.speedup=500.* the largest is [\d.]+ "):
        if scope == "layer":
            uniform_counts(units, target)
        else:
            scores = {each.name: torch.arange(each.count) for each in units}
            counts_by_score(units, scores, target, WandaUnits())


METHODS = [ZipLM(scope="model"), ZipLM(), Flap(), WandaUnits(scope="model"), TaylorUnits(scope="model"), TaylorUnits()]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{type(method).__name__}-{method.scope}")
@pytest.mark.parametrize("bend", [0.5, 1.0, 1.6])
def test_a_method_reaches_the_time(tiny_model, random_tokens, method, bend):
    model = tiny_model("llama")
    target = timed(model, "width", 1.3, bend=bend)
    result = method.prune(PruningContext(model, target, Calibration(random_tokens(), batch_size=4)))
    gone = {each.name: int((~result.masks[each.name]).count_nonzero()) for each in target.units(model)}
    assert target.time.fits(target.time.of(gone))
    assert sum(gone.values()) and all(gone[each.name] < each.count for each in target.units(model))


def test_ziplm_makes_the_least_error_of_all_that_fits(tiny_model, random_tokens):
    model = tiny_model("llama")
    target = timed(model, "heads", 1.2)
    units, method = target.units(model), ZipLM(scope="model")
    context = PruningContext(model, target, Calibration(random_tokens(), batch_size=4))
    curves = method.of_dense_model(units, context, method._curve)
    counts = method.counts(units, context)
    best = min(
        sum(curves[each.name][number] for each, number in zip(units, numbers, strict=True))
        for numbers in product(*(range(each.count) for each in units))
        if target.time.fits(target.time.of({each.name: n for each, n in zip(units, numbers, strict=True)}))
    )
    assert sum(curves[name][number] for name, number in counts.items()) == pytest.approx(best)


@pytest.mark.parametrize("given", [{"speedup": 1.0}, {"speedup": True}, {"speedup": 2, "level": 0.5},
                                   {"speedup": 2, "pattern": "unstructured"}, {"speedup": 2, "pattern": "blocks"},
                                   {"speedup": 2, "pattern": "2:4"}])  # fmt: skip
def test_what_is_no_speed_is_refused(given):
    with pytest.raises(BadInput, match=r"Target\.speedup="):
        Target(**({"pattern": "width"} | given))


def test_without_a_speed_a_level_is_needed():
    with pytest.raises(BadInput, match=r"Target\.level=null"):
        Target("width")
