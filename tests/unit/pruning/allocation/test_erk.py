import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune_lab.pruning.allocation.erk import ERK, densities
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.masks import count_dropped
from prune_lab.pruning.target import Target

SHAPES = {"small": (10, 10), "large": (100, 100)}
SUMS = {name: sum(shape) for name, shape in SHAPES.items()}
ENTRIES = {name: out * inputs for name, (out, inputs) in SHAPES.items()}


def test_densities_are_in_proportion_to_the_sum_over_the_product():
    """101 weights of 10,100 stay: e = 101 / 220."""
    found = densities(SUMS, ENTRIES, 0.01)
    assert found == pytest.approx({"small": 101 / 220 * 20 / 100, "large": 101 / 220 * 200 / 10_000})


def test_a_layer_that_would_get_too_many_stays_dense_and_the_other_gets_the_rest():
    """5,050 stay; in proportion, 459 of them in a layer that has 100."""
    assert densities(SUMS, ENTRIES, 0.5) == pytest.approx({"small": 1.0, "large": 4950 / 10_000})


@given(
    st.lists(st.tuples(st.integers(2, 5000), st.integers(2, 5000)), min_size=1, max_size=8),
    st.floats(0.001, 1.0),
)
def test_the_overall_density_is_right(shapes, density):
    sums = {str(index): sum(shape) for index, shape in enumerate(shapes)}
    entries = {str(index): shape[0] * shape[1] for index, shape in enumerate(shapes)}
    found = densities(sums, entries, density)
    assert all(0 <= value <= 1 + 1e-9 for value in found.values())
    kept = sum(found[name] * entries[name] for name in entries)
    assert kept == pytest.approx(density * sum(entries.values()), rel=1e-6)


def test_larger_layers_lose_more_and_the_total_is_exact(tiny_model, random_tokens):
    model = tiny_model("llama")
    budget = ERK().budget(model, Calibration(random_tokens(1, 8)), Target(level=0.7))
    linears = {linear.name: linear for linear in model.linears}
    attention = {budget[name] for name in linears if "q_proj" in name}
    mlp = {budget[name] for name in linears if "up_proj" in name}
    assert max(attention) < min(mlp)
    sizes = {name: linear.weight.numel() for name, linear in linears.items()}
    assert sum(count_dropped(budget[name], n) for name, n in sizes.items()) == sum(
        count_dropped(0.7, n) for n in sizes.values()
    )
