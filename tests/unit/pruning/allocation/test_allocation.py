import pytest

from prune_lab.errors import BadInput
from prune_lab.pruning.allocation.owl import OWL
from prune_lab.pruning.allocation.uniform import Uniform
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.target import Target


def test_uniform_takes_every_target_and_leaves_it(tiny_model, random_tokens):
    model = tiny_model("opt")
    for target in (Target(level=0.5), Target("2:4")):
        Uniform().check(target)
        Uniform().check_model(model, target)
        assert Uniform().budget(model, Calibration(random_tokens(1, 8)), target) == {}


def test_a_pattern_leaves_nothing_to_allocate():
    with pytest.raises(BadInput, match=r"sparsity\.pattern='2:4' fixes every layer's sparsity.*allocation=uniform"):
        OWL().check(Target("2:4"))


def test_a_level_above_the_cap_is_refused():
    with pytest.raises(BadInput, match=r"sparsity\.level=0\.9 is more than OWL\.max_level=0\.8"):
        OWL(max_level=0.8).check(Target(level=0.9))


def test_a_level_that_would_empty_rows_is_refused(tiny_model):
    model = tiny_model("opt")  # 32 and 64 inputs
    OWL().check_model(model, Target(level=0.97))
    with pytest.raises(BadInput, match=r"sparsity\.level=0\.98 removes more than this allocation may from tiny_opt"):
        OWL().check_model(model, Target(level=0.98))


def test_no_layer_exceeds_the_cap(tiny_model, random_tokens):
    model = tiny_model("opt")
    budget = OWL(max_level=0.72).budget(model, Calibration(random_tokens(4, 16)), Target(level=0.7))
    assert max(budget.values()) <= 0.72
    assert max(budget.values()) == pytest.approx(0.72, abs=0.001)


def test_settings_are_described_for_the_protocol():
    assert Uniform().describe() == {"name": "Uniform"}
    assert OWL().describe() == {"name": "OWL", "max_level": None, "multiple": 5.0, "half_width": 0.08}
