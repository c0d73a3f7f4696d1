"""What was pruned is compared with what was asked for, and zeros and finiteness are checked."""

import pytest
import torch

from prune_lab.errors import RunFailed
from prune_lab.pruning.masks import Masks
from prune_lab.pruning.methods.alps import ALPS
from prune_lab.pruning.methods.dense import Dense
from prune_lab.pruning.methods.gum import GUM
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.methods.soft_movement import SoftMovement
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.reached import check_reached
from prune_lab.pruning.result import PruningResult
from prune_lab.pruning.target import Target
from prune_lab.pruning.zeros import check_finite, check_zeros, masks_of_zeros


def drop(linear, count: int) -> None:
    linear.weight.view(-1)[:count] = 0


@pytest.mark.parametrize(("dropped", "fails"), [(0, True), (440, True), (480, False), (512, False), (600, True)])
def test_a_layer_that_is_off_fails_the_run_by_its_name(tiny_model, dropped, fails):
    model = tiny_model("opt")
    first, *rest = model.linears
    drop(first, dropped)
    for linear in rest:
        drop(linear, linear.weight.numel() // 2)
    target = Target(level=0.49)  # 501 of 1,024; 480 where every row of 32 loses 15
    if fails:
        with pytest.raises(RunFailed, match=rf"^{first.name}: {dropped} of 1024 weights went .* \(480 to 533\)"):
            check_reached(model, target, Wanda(), PruningResult(), {})
    else:
        target = Target(level=0.5, budget={linear.name: 0.5 for linear in rest} | {first.name: dropped / 1024})
        check_reached(model, target, Wanda(), PruningResult(), {})


def test_all_weights_of_a_layer_are_too_many(tiny_model):
    """What a method leaves whose arithmetic has gone wrong."""
    model = tiny_model("opt")
    for linear in model.linears:
        linear.weight.zero_()
    with pytest.raises(RunFailed, match=r"1024 of 1024 weights went \(100.0000%\), where the target is 50.0000%"):
        check_reached(model, Target(level=0.5), ALPS(), PruningResult(), {})
    check_reached(model, Target(level=0.5), Dense(), PruningResult(), {})


def test_groups_are_counted_for_a_pattern(tiny_model):
    model, target = tiny_model("opt"), Target("2:4")
    for linear in model.linears:
        linear.weight.view(-1, 4)[:, :2] = 0
    check_reached(model, target, Wanda(), PruningResult(), {})
    next(model.linears).weight[0] = 1
    with pytest.raises(RunFailed, match=r"q_proj: 496 of 1024|k_proj: 496 of 1024"):
        check_reached(model, target, Wanda(), PruningResult(), {})


def test_one_cut_for_the_model_is_judged_by_the_total(tiny_model):
    model, target = tiny_model("opt"), Target(level=0.5)
    linears = list(model.linears)
    for linear in linears[: len(linears) // 2]:
        linear.weight.zero_()
    gone = sum(linear.weight.numel() for linear in linears[: len(linears) // 2])
    share = gone / sum(linear.weight.numel() for linear in linears)
    check_reached(model, Target(level=share), Magnitude("model"), PruningResult(), {})
    with pytest.raises(RunFailed, match="all layers together"):
        check_reached(model, target, Magnitude("model"), PruningResult(), {})


@pytest.mark.parametrize(
    ("method", "kept", "fails"), [(GUM(), 32, False), (GUM(), 40, True), (SoftMovement(), 40, False), (GUM(), 20, True)]
)
def test_units_are_counted_by_their_masks(tiny_model, method, kept, fails):
    model, target = tiny_model("opt"), Target("neurons", level=0.5)  # 32 of 64 in every block
    masks = Masks({units.name: torch.arange(units.count) < kept for units in target.units(model)})
    for units in target.units(model):
        units.apply(masks[units.name])
    if fails:
        with pytest.raises(RunFailed, match=rf"{3 * (64 - kept)} of 192 neurons went"):
            check_reached(model, target, method, PruningResult(masks), {})
    else:
        check_reached(model, target, method, PruningResult(masks), {})


@pytest.mark.parametrize("part", [0, 1])
def test_units_that_were_zero_before_may_be_more_than_the_level(tiny_model, part):
    """Those of which a part only was zero may not."""
    model, target = tiny_model("llama"), Target("neurons", level=0.25)  # 12 of 48 in every block
    masks = Masks({units.name: torch.arange(48) < 28 for units in target.units(model)})
    for units in target.units(model):
        units.apply(masks[units.name])
    before = masks_of_zeros(model)
    check_reached(model, target, Magnitude(), PruningResult(masks), before)
    before[model.blocks[1].mlp.linears[part].name] = torch.ones(48, 32, dtype=torch.bool)
    with pytest.raises(RunFailed, match=r"layers\.1\.\S*: 20 of 48 neurons went"):
        check_reached(model, target, Magnitude(), PruningResult(masks), before)


def test_a_zero_that_came_back_and_a_weight_that_is_no_number_are_named(tiny_model):
    model = tiny_model("gpt2")
    linear = list(model.linears)[3]
    linear.weight[0, :10] = 0
    before = masks_of_zeros(model)
    assert list(before) == [linear.name]
    check_zeros(model, before, "pruning")
    check_finite(model, "pruning")
    linear.weight[0, 3] = torch.nan
    with pytest.raises(RunFailed, match=rf"{linear.name}: 1 of 10 weights that were zero before tuning"):
        check_zeros(model, before, "tuning")
    with pytest.raises(RunFailed, match=rf"{linear.name}.weight: there are NaN or infinite values after tuning"):
        check_finite(model, "tuning")


@pytest.mark.parametrize(
    ("level", "gone", "warns"), [(0.2, 0, True), (0.5, 2, False), (0.74, 2, True), (0.8, 3, False), (0.9, 3, True)]
)
def test_layers_of_few_heads_that_miss_the_level_are_told(tiny_model, caplog, level, gone, warns):
    model, target = tiny_model("opt"), Target("heads", level=level)
    masks = Masks({units.name: torch.arange(units.count) >= gone for units in target.units(model)})  # of 4
    check_reached(model, target, Magnitude(), PruningResult(masks), {})
    assert (f"{25.0 * gone:.1f} % of the heads went, where {100 * level:.1f} % were asked for" in caplog.text) == warns


@pytest.mark.parametrize(("kept", "fails"), [((1, 1, 1), False), ((1, 1, 2), True)])
def test_one_unit_may_stay_of_a_layer_and_no_more(tiny_model, kept, fails):
    """The level leaves 1 of 64 neurons in every block, of all together 2 of 192."""
    model, target = tiny_model("opt"), Target("neurons", level=0.99)
    masks = {units.name: torch.arange(64) < count for units, count in zip(target.units(model), kept, strict=True)}
    if fails:
        with pytest.raises(RunFailed, match="188 of 192 neurons went"):
            check_reached(model, target, Magnitude("model"), PruningResult(Masks(masks)), {})
    else:
        check_reached(model, target, Magnitude("model"), PruningResult(Masks(masks)), {})
