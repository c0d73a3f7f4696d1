import pytest

from prune_lab.errors import BadInput
from prune_lab.pruning.allocation.atp import ATP, progression
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.target import Target


def test_levels_rise_by_the_difference_around_the_mean():
    assert progression(4, 0.5, 0.1) == pytest.approx([0.35, 0.45, 0.55, 0.65])
    assert progression(1, 0.5, 0.1) == [0.5]


def test_blocks_get_the_progression(tiny_model, random_tokens):
    model = tiny_model("opt")  # all blocks are of one size
    budget = ATP(difference=0.125).budget(model, Calibration(random_tokens(1, 8)), Target(level=0.5))
    for block, level in zip(model.blocks, (0.375, 0.5, 0.625), strict=True):
        assert {budget[linear.name] for linear in block.linears} == {level}


def test_only_blocks_in_the_range_count(tiny_model, random_tokens):
    model = tiny_model("opt")
    target = Target(level=0.5, layers=[1, 3])
    budget = ATP(difference=0.25).budget(model, Calibration(random_tokens(1, 8)), target)
    assert [budget[block.linears[0].name] for block in model.blocks[1:]] == [0.375, 0.625]
    assert len(budget) == 12


@pytest.mark.parametrize(
    ("level", "difference", "allowed"),
    [(0.75, 0.25, r"\[0, 0\.25\)"), (0.75, 0.3, r"\[0, 0\.25\)"), (0.25, 0.3, r"\[0, 0\.25\]")],
)
def test_a_difference_that_leaves_the_range_is_refused_with_those_allowed(tiny_model, level, difference, allowed):
    with pytest.raises(BadInput, match=rf"ATP\.difference={difference} leads from .*; allowed: {allowed}"):
        ATP(difference=difference).check_model(tiny_model("opt"), Target(level=level))


@pytest.mark.parametrize(("level", "difference"), [(0.25, 0.25), (0.3, 0.3), (0.75, 0.2)])
def test_the_allowed_end_is_allowed(tiny_model, level, difference):
    ATP(difference=difference).check_model(tiny_model("opt"), Target(level=level))


def test_a_falling_progression_is_refused():
    with pytest.raises(BadInput, match=r"ATP\.difference=-0\.01"):
        ATP(difference=-0.01)
