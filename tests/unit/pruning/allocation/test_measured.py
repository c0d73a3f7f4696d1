import pytest
import torch

from prune_lab.errors import BadInput, NotPositiveDefinite
from prune_lab.pruning.allocation.measured import Measured
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.masks import count_dropped
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.target import Target


@pytest.mark.parametrize("inner", [SparseGPT(), Wanda()], ids=repr)
def test_errors_are_those_of_the_dense_model_and_nothing_is_written(tiny_model, random_tokens, inner):
    """With one level, each layer goes to it or not: the curves are read off what the method itself records."""
    model, tokens = tiny_model("llama"), random_tokens(4, 24)
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    allocation, target = Measured(inner, levels=[0.5]), Target(level=0.25)
    budget = allocation.budget(model, Calibration(tokens), target)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.hf.state_dict().items())
    calibration = Calibration(tokens, propagate="dense")  # 96 tokens: all are in the error samples
    rows = inner.prune(PruningContext(model, Target(level=0.5), calibration)).layers
    slopes = {row.name: row.error / (row.shape[0] * row.shape[1]) for row in rows.values()}
    taken = [slopes[name] for name in slopes if budget[name] == 0.5]
    spared = [slopes[name] for name in slopes if budget[name] == 0]
    assert len(taken) + len(spared) >= len(slopes) - 1
    assert max(taken) < min(spared)


def test_the_total_is_exact_and_no_layer_exceeds_the_highest_level(tiny_model, random_tokens):
    model = tiny_model("opt")
    for level in (0.0, 0.3, 0.7, 0.9):
        budget = Measured(levels=[0.5, 0.7, 0.9]).budget(model, Calibration(random_tokens(4, 16)), Target(level=level))
        sizes = {linear.name: linear.weight.numel() for linear in model.linears}
        counts = {name: count_dropped(budget[name], n) for name, n in sizes.items()}
        assert sum(counts.values()) == sum(count_dropped(level, n) for n in sizes.values())
        assert max(budget.values()) <= 0.9


def test_a_layer_without_outputs_costs_nothing_and_goes_first(tiny_model, random_tokens):
    model = tiny_model("opt")
    silent = model.blocks[1].linears[0]
    silent.write(torch.zeros(silent.shape))
    budget = Measured(levels=[0.5]).budget(model, Calibration(random_tokens(4, 16)), Target(level=0.1))
    assert budget[silent.name] == 0.5


def test_weightings_differ(tiny_model, random_tokens):
    model, target = tiny_model("opt"), Target(level=0.7)
    budgets = [
        Measured(weighting=weighting).budget(model, Calibration(random_tokens(4, 16)), target)
        for weighting in ("relative", "size", "absolute")
    ]
    assert budgets[0] != budgets[1] != budgets[2] != budgets[0]


def test_a_numerical_failure_names_the_layer_and_the_remedy(tiny_model, random_tokens):
    with pytest.raises(NotPositiveDefinite, match=r"layers\.0\..*raise SparseGPT\.damping"):
        Measured(SparseGPT(damping=0)).budget(tiny_model("opt"), Calibration(random_tokens(1, 8)), Target(level=0.7))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner": Magnitude()}, r"Measured\.inner=Magnitude"),
        ({"levels": []}, r"Measured\.levels=\[\]"),
        ({"levels": 0.5}, r"Measured\.levels=0\.5"),
        ({"levels": [0.5, 1.0]}, r"Measured\.levels=\[0\.5, 1\.0\] .*\[0, 1\)"),
        ({"weighting": "both"}, r"Measured\.weighting='both' .*relative, size, absolute"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(BadInput, match=message):
        Measured(**settings)


def test_levels_that_do_not_reach_the_target_are_refused():
    with pytest.raises(BadInput, match=r"sparsity\.level=0\.97 is more than the highest of Measured\.levels, 0\.95"):
        Measured().check(Target(level=0.97))


def test_the_protocol_names_the_inner_method():
    described = Measured(Wanda(), levels=[0.9, 0.5]).describe()
    assert described["inner"] == {"name": "Wanda"}
    assert described["levels"] == [0.5, 0.9]
