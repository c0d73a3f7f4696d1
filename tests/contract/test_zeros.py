"""What every method in ``conf/method`` promises of a model that is sparse already: its zeros stay, and count."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from torch import Tensor

from prune_lab.errors import BadInput, RunFailed
from prune_lab.models.model import PrunableModel
from prune_lab.models.model_units import all_experts, all_heads, all_neurons
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.masks import count_dropped
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.reached import check_reached
from prune_lab.pruning.result import PruningResult
from prune_lab.pruning.target import Target
from prune_lab.pruning.zeros import check_zeros, masks_of_zeros
from prune_lab.run.conf_folder import conf_folder
from prune_lab.training.settings import Training

YAMLS = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (conf_folder() / "method").iterdir()}
TARGETS = {  # with the family that it is tried on
    "less": (Target(level=0.3), "llama"),
    "more": (Target(level=0.75), "gpt2"),
    "2:4": (Target("2:4"), "llama"),
    "neurons": (Target("neurons", level=0.5), "llama"),
    "heads": (Target("heads", level=0.5), "gpt2"),
    "width": (Target("width", level=0.5), "llama"),
    "query_heads": (Target("query_heads", level=0.5), "llama"),
    "neurons_query_heads": (Target("neurons_query_heads", level=0.5), "qwen2"),
    "values": (Target("values", level=0.5), "gpt2"),
    "neurons_values": (Target("neurons_values", level=0.5), "llama"),
    "blocks": (Target("blocks", level=0.5), "llama"),
    "experts": (Target("experts", level=0.5), "mixtral"),
}
REWRITING = {name for name, plain in YAMLS.items() if get_class(plain["_target_"]).rewrites}
CASES = [
    (name, kind)
    for name, plain in sorted(YAMLS.items())
    if name not in REWRITING
    for kind, (target, _) in TARGETS.items()
    if target.kind in get_class(plain["_target_"]).patterns
]
UPDATING = ["admm", "alps", "sparsegpt", "sparsellm"]
"""Methods that choose masks and change the weights they keep, so that zeros come back where nobody looks."""


@cache
def method(name: str) -> Method:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        sized = ["method.rank=1", "method.share=null"] if name == "low_rank" else []  # the layers are small
        return instantiate(compose("config", overrides=[f"method={name}", *sized]).method)


def half_sparse(model: PrunableModel) -> PrunableModel:
    """Half of the weights become zero, from none of the first row to all of the last; also some units."""
    generator = torch.Generator().manual_seed(7)
    for linear in model.linears:
        rows, columns = linear.shape
        share = torch.linspace(0, 1, rows)[:, None].expand(rows, columns)
        linear.weight.mul_(torch.rand(rows, columns, generator=generator) >= share)
    for units in (units_of(model)[1] for units_of in (all_neurons, all_heads, all_experts) if units_of(model)):
        units.apply(torch.arange(units.count) > 0)
    return model


def prune(model: PrunableModel, method: Method, target: Target, tokens: Tensor) -> PruningResult:
    training = Training(steps=3, batch_size=4, lr=1e-2)
    return method.prune(PruningContext(model, target, Calibration(tokens, batch_size=4), training=training))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_zeros_stay_and_the_level_is_reached(
    tiny_model: Callable[..., PrunableModel],
    random_tokens: Callable[..., Tensor],
    name: str,
    kind: str,
):
    made, (target, family) = method(name), TARGETS[kind]
    model = half_sparse(tiny_model(family))
    before = masks_of_zeros(model)
    dead = {units.name: units.zero for units in target.units(model)}
    result = prune(model, made, target, random_tokens(8, 16))
    check_zeros(model, before, "pruning")
    check_reached(model, target, made, result, before)
    if made.reaches != "level":
        return
    if target.removes_units:
        assert not any(bool((result.masks[each] & zero).any()) for each, zero in dead.items())
        return
    for linear in target.linears(model):
        zeros, entries = int((~before[linear.name]).sum()), linear.weight.numel()
        gone = entries - int(linear.weight.count_nonzero())
        if target.n_of_m:
            assert gone == int((~before[linear.name]).unflatten(1, (-1, 4)).sum(-1).clamp_min(2).sum())
        elif made.allocation_conflict is None:
            beside = result.pairs[linear.name].parameters if result.pairs else 0  # of low-rank parts, counted as kept
            asked = count_dropped(target.sparsity, entries) + beside
            assert max(zeros, asked - linear.shape[0]) <= gone <= max(zeros, asked)


@pytest.mark.parametrize("name", UPDATING)
def test_zeros_may_come_back_if_that_is_asked_for(
    tiny_model: Callable[..., PrunableModel],
    random_tokens: Callable[..., Tensor],
    name: str,
):
    """This is what a method does that nobody holds to the zeros, and it shows that the check sees it."""
    model = half_sparse(tiny_model("opt"))
    before = masks_of_zeros(model)
    target = Target("2:4", keep_zeros=False)
    result = prune(model, method(name), target, random_tokens(8, 16))
    check_reached(model, target, method(name), result, before)
    with pytest.raises(RunFailed, match=r"layers\.0\.\S+: \d+ of \d+ weights that were zero before pruning"):
        check_zeros(model, before, "pruning")


def test_there_is_no_method_that_is_not_asked():
    assert {name for name, _ in CASES} | REWRITING == set(YAMLS) > set(UPDATING)


@pytest.mark.parametrize("name", sorted(REWRITING))
def test_a_method_that_cannot_keep_zeros_says_so_before_it_does_anything(
    tiny_model: Callable[..., PrunableModel], random_tokens: Callable[..., Tensor], name: str
):
    model, target = half_sparse(tiny_model("llama")), Target("2:4")
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    with pytest.raises(BadInput, match=r"zeros among its prunable weights.*sparsity\.keep_zeros=false"):
        method(name).check_model(model, target)
    with pytest.raises(BadInput, match=r"zeros among its prunable weights"):
        prune(model, method(name), target, random_tokens(8, 16))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.hf.state_dict().items())
    let_go = Target("2:4", keep_zeros=False)
    zeros = masks_of_zeros(model)
    check_reached(model, let_go, method(name), prune(model, method(name), let_go, random_tokens(8, 16)), zeros)
