from collections.abc import Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prune_lab.errors import BadInput
from prune_lab.pruning.masks import count_dropped
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.target import Target
from prune_lab.pruning.unit_counts import counts_by_score, parameters_of, removed_share, uniform_counts

QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def units_of(tiny_model):
    model = tiny_model("llama")
    return lambda target: target.units(model)


def gone(units: Sequence, counts: dict[str, int]) -> int:
    return sum(counts[each.name] * each.parameters_each for each in units)


@QUICK
@given(level=st.floats(0, 0.95))
def test_neurons_make_up_for_heads_of_which_only_whole_ones_go(units_of, level):
    target = Target("width", level)
    units = units_of(target)
    counts = uniform_counts(units, target)
    for heads, neurons in zip(units[::2], units[1::2], strict=True):
        assert (heads.kind, neurons.kind) == ("heads", "neurons")
        assert counts[heads.name] == min(int(level * heads.count + 1e-9), heads.count - 1)
        missing = level * parameters_of([heads, neurons]) - gone([heads, neurons], counts)
        assert missing > -1e-6
        assert missing < neurons.parameters_each + 1e-6 or counts[neurons.name] == neurons.count - 1


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_parameters_are_all_weights_and_biases_that_belong_to_a_unit(tiny_model, family):
    units = Target("width", 0.5).units(tiny_model(family))
    inside = sum(
        member.linear.weight.numel() + (member.bias.numel() if member.bias is not None else 0)
        for each in units
        for member in each.members
    )
    assert parameters_of(units) == inside


def test_a_budget_by_the_names_of_units_is_obeyed(units_of):
    target = Target("neurons", 0.5)
    names = [each.name for each in units_of(target)]
    asked = Target("neurons", 0.5, budget={names[0]: 0.25})
    assert list(uniform_counts(units_of(asked), asked).values()) == [12, 24, 24]


@QUICK
@given(
    st.data(), st.sampled_from(["neurons", "heads", "width", "query_heads", "neurons_query_heads"]), st.floats(0, 0.6)
)
def test_the_lowest_scores_go_as_far_as_the_parameters_reach(units_of, data, pattern, level):
    target = Target(pattern, level)
    units = units_of(target)
    seed = data.draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    scores = {each.name: torch.rand(each.count, generator=generator) for each in units}
    if pattern in ("heads", "query_heads"):
        level = min(level, 0.5)  # each of three blocks keeps one of two
        target = Target(pattern, level)
    counts = counts_by_score(units, scores, target, Magnitude())
    budget = count_dropped(level, parameters_of(units))
    assert gone(units, counts) <= budget
    assert budget - gone(units, counts) < max(each.at_once * each.parameters_each for each in units)
    assert all(counts[each.name] % each.at_once == 0 for each in units)
    assert all(counts[each.name] < each.count for each in units)
    kept = {each.name: scores[each.name].sort().values[counts[each.name] :] for each in units}
    if pattern == "neurons":  # all alike: one cut
        lost = [scores[each.name].sort().values[: counts[each.name]] for each in units]
        assert max((float(v[-1]) for v in lost if len(v)), default=0) <= min(float(v[0]) for v in kept.values())


def test_a_level_that_would_leave_a_layer_nothing_is_refused(units_of):
    target = Target("heads", 0.8)
    units = units_of(target)
    with pytest.raises(BadInput, match=r"one cut of 0\.8 .*layers\.0\.heads: 1 of 2.*Magnitude\.scope=layer"):
        counts_by_score(units, {each.name: torch.rand(each.count) for each in units}, target, Magnitude("model"))


def test_the_share_that_went_is_one_of_parameters(units_of):
    units = units_of(Target("width", 0.5))
    masks = {each.name: torch.ones(each.count, dtype=torch.bool) for each in units}
    assert removed_share(units, masks) == 0
    masks[units[0].name][0] = False
    assert removed_share(units, masks) == pytest.approx(units[0].parameters_each / parameters_of(units))
