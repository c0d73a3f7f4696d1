"""What every allocation in ``conf/allocation`` promises, with every method that obeys one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from prune_lab.errors import BadInput
from prune_lab.models.model import PrunableModel
from prune_lab.pruning.allocation.uniform import Uniform
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.masks import count_dropped
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.methods.ziplm import ZipLM
from prune_lab.pruning.reached import check_reached
from prune_lab.pruning.result import PruningResult
from prune_lab.pruning.target import Target
from prune_lab.pruning.unit_counts import uniform_counts
from prune_lab.run.conf_folder import conf_folder

ALL = sorted((conf_folder() / "allocation").glob("*.yaml"))
OF_UNITS = ["evolution_units"]
YAMLS = [path for path in ALL if path.stem not in OF_UNITS]
METHODS = [Magnitude(), Magnitude("row"), Wanda(), SparseGPT()]
LEVEL = 0.7
SHORT = ["allocation.generations=4", "allocation.offspring=4", "allocation.tokens=[24,48]"]


@pytest.fixture(params=YAMLS, ids=lambda path: path.stem)
def allocation(request: pytest.FixtureRequest, composed: Callable[..., DictConfig], tmp_path: Path):
    """Each choice, as the command makes it."""
    (tmp_path / "levels.yaml").write_text("0: 0.65\n1: 0.7\n2: 0.75\n", encoding="utf-8")
    given = {  # what has no default, or one for models and calibration sets that are larger
        "from_file": [f"allocation.path={tmp_path}/levels.yaml"],
        "evolution": SHORT,
    }
    return instantiate(composed(f"allocation={request.param.stem}", *given.get(request.param.stem, [])).allocation)


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_method_obeys_it_exactly(
    tiny_model: Callable[..., PrunableModel],
    random_tokens: Callable[..., Tensor],
    family: str,
    allocation,
    method: Method,
):
    model, tokens, target = tiny_model(family), random_tokens(4, 24), Target(level=LEVEL)
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    allocation.check(target)
    allocation.check_model(model, target)
    budget = allocation.budget(model, Calibration(tokens), target)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.hf.state_dict().items())
    assert allocation.budget(model, Calibration(tokens), target) == budget
    if isinstance(allocation, Uniform):
        assert budget == {}
        return
    linears = {linear.name: linear for linear in model.linears}
    assert list(budget) == list(linears)
    assert len(set(budget.values())) > 1
    asked = Target(level=LEVEL, budget=budget)
    masks = method.prune(PruningContext(model, asked, Calibration(tokens))).masks
    sizes = {name: linear.weight.numel() for name, linear in linears.items()}
    gone = {name: int((~mask).sum()) for name, mask in masks.items()}
    assert gone == {name: asked.dropped(name, entries) for name, entries in sizes.items()}
    assert sum(gone.values()) == sum(count_dropped(LEVEL, entries) for entries in sizes.values())


@pytest.mark.parametrize("name", OF_UNITS)
@pytest.mark.parametrize("pattern", ["neurons", "heads", "width"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_neurons_and_heads_are_divided_exactly(
    tiny_model: Callable[..., PrunableModel],
    random_tokens: Callable[..., Tensor],
    composed: Callable[..., DictConfig],
    family: str,
    pattern: str,
    name: str,
):
    """As many of one kind as with one level for all blocks, or as many parameters, and by no other method otherwise."""
    model, target, calibration = tiny_model(family), Target(pattern, 0.5), Calibration(random_tokens(4, 24))
    allocation = instantiate(composed(f"allocation={name}", *SHORT).allocation)
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    allocation.check(target)
    allocation.check_model(model, target)
    budget = allocation.budget(model, calibration, target)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.hf.state_dict().items())
    units = target.units(model)
    assert list(budget) == [each.name for each in units]
    uniform = uniform_counts(units, target)
    asked = replace(target, budget=budget)
    masks = ZipLM().prune(PruningContext(model, asked, calibration)).masks
    gone = {name: int((~mask).sum()) for name, mask in masks.items()}
    assert gone == {each.name: asked.dropped(each.name, each.count) for each in units}
    if pattern != "width":
        assert sum(gone.values()) == sum(uniform.values())
        return
    everything, gone_of_it = (
        sum(numbers[each.name] * each.parameters_each for each in units)
        for numbers in ({each.name: each.count for each in units}, gone)
    )
    assert 0 <= count_dropped(target.level, everything) - gone_of_it < min(each.parameters_each for each in units)
    check_reached(model, asked, ZipLM(), PruningResult(masks), {})


def test_only_uniform_takes_a_pattern(allocation):
    if isinstance(allocation, Uniform):
        allocation.check(Target("2:4"))
        return
    with pytest.raises(BadInput, match="allocation=uniform"):
        allocation.check(Target("2:4"))


def test_there_are_allocations_to_test():
    assert {"uniform", "owl", "erk", "atp", "from_file", "measured", "evolution"} <= {path.stem for path in YAMLS}
