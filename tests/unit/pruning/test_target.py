import pytest
import torch

from prune_lab.errors import BadInput
from prune_lab.pruning.target import Target


@pytest.mark.parametrize("level", [1.0, -0.1, 1.5, float("nan")])
def test_a_level_outside_the_range_is_refused_with_the_range(level):
    with pytest.raises(BadInput, match=r"Target\.level=.*\[0, 1\)"):
        Target(level=level)


def test_an_unstructured_target_needs_a_level():
    with pytest.raises(BadInput, match=r"Target\.level=null is not allowed; .*\[0, 1\)"):
        Target()


@pytest.mark.parametrize(
    "pattern", ["2:", ":4", "2-4", "0:4", "2:0", "neuron", "2:4:8", 124, "2:12345678", "2:" + 5000 * "9"]
)
def test_an_unknown_pattern_is_refused(pattern):
    with pytest.raises(
        BadInput,
        match=r"Target\.pattern=.*unstructured, neurons, heads, width, query_heads, neurons_query_heads, values, "
        r"neurons_values, keys, neurons_values_keys, experts, blocks, sub_blocks, or N:M",
    ):
        Target(pattern, level=0.5)


@pytest.mark.parametrize(
    ("pattern", "sparsity"), [("2:4", 0.5), ("4:8", 0.5), ("1:4", 0.75), ("3:4", 0.25), ("5:7", 2 / 7)]
)
def test_a_pattern_sets_the_level(pattern, sparsity):
    target = Target(pattern)
    assert target.sparsity == pytest.approx(sparsity)
    n, m = target.n_of_m
    assert f"{n}:{m}" == pattern


def test_a_level_that_contradicts_the_pattern_is_refused():
    with pytest.raises(BadInput, match="contradicts"):
        Target("2:4", level=0.7)
    assert Target("2:4", level=0.5).sparsity == 0.5


def test_more_kept_than_there_are_is_refused():
    with pytest.raises(BadInput, match="N <= M"):
        Target("5:4")


@pytest.mark.parametrize("level", ["", "0.5", "much", True, [0.5]])
def test_a_level_that_is_no_number_is_refused(level):
    for pattern in ("unstructured", "2:4"):
        with pytest.raises(BadInput, match=r"Target\.level=.*is not allowed; allowed: numbers in \[0, 1\)"):
            Target(pattern, level=level)


@pytest.mark.parametrize(
    "layers", [[2, 1], [1, 1], [-1, 2], [1], [0, 1, 2], [0, 1.5], ["0", "2"], 3, "02", [False, True]]
)
def test_what_is_no_range_of_layers_is_refused(layers):
    with pytest.raises(BadInput, match=r"Target\.layers"):
        Target(level=0.5, layers=layers)


def test_a_range_of_layers_is_half_open(tiny_model):
    model = tiny_model("opt")
    target = Target(level=0.5, layers=[1, 3])
    assert [target.includes(block) for block in model.blocks] == [False, True, True]
    names = [linear.name for linear in target.linears(model)]
    assert names == [linear.name for block in model.blocks[1:3] for linear in block.linears]
    assert list(Target(level=0.5).linears(model)) == list(model.linears)


def test_a_range_beyond_the_model_is_refused_with_its_number_of_blocks(tiny_model):
    with pytest.raises(BadInput, match="3 blocks"):
        Target(level=0.5, layers=[0, 4]).check(tiny_model("opt"))
    Target(level=0.5, layers=[0, 3]).check(tiny_model("opt"))


def test_a_pattern_that_does_not_divide_names_the_layer(tiny_model):
    with pytest.raises(BadInput, match=r"layers\.0\.self_attn\.q_proj: 32 inputs"):
        Target("2:3").check(tiny_model("llama"))
    Target("2:4").check(tiny_model("llama"))


def test_a_budget_replaces_the_level_by_name():
    target = Target(level=0.5, budget={"a": 0.25})
    assert (target.of("a"), target.of("b")) == (0.25, 0.5)
    with pytest.raises(BadInput, match="budget of a"):
        Target(level=0.5, budget={"a": 1.0})


def test_a_pattern_goes_along_the_inputs_and_names_the_first_layer_that_it_does_not_divide(tiny_model):
    """The keys of this model have 16 outputs and 32 inputs, its down-projections 48 inputs."""
    with pytest.raises(BadInput, match=r"layers\.0\.mlp\.down_proj: 48 inputs are no multiple of 32"):
        Target("16:32").check(tiny_model("llama"))


@pytest.mark.parametrize("keep", [True, False])
def test_zeros_stay_where_there_are_any_and_unless_that_is_turned_off(keep):
    target = Target(level=0.5, keep_zeros=keep)
    found = target.zeros_to_keep(torch.tensor([[1.0, 0.0], [-0.0, -2.0]]))
    assert (found is None) is not keep
    if keep:
        assert found.tolist() == [[False, True], [True, False]]
    assert target.zeros_to_keep(torch.ones(2, 2)) is None
