"""What methods promise of models with experts: fewer cases than on other families, which `test_methods` has."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig
from torch import Tensor

from prune_lab.models.experts import moe_of
from prune_lab.models.model import PrunableModel
from prune_lab.models.model_units import all_experts
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.reached import check_reached
from prune_lab.pruning.result import PruningResult
from prune_lab.pruning.target import Target
from prune_lab.pruning.zeros import check_zeros, masks_of_zeros
from prune_lab.run.conf_folder import conf_folder

ALL = sorted((conf_folder() / "method").glob("*.yaml"))
CLASSES = {path: get_class(yaml.safe_load(path.read_text(encoding="utf-8"))["_target_"]) for path in ALL}
FITTING = [path for path in ALL if CLASSES[path].prunes_experts and path.stem != "dense"]
OF_WEIGHTS = [path for path in FITTING if "unstructured" in CLASSES[path].patterns]
OF_EXPERTS = [path for path in FITTING if "experts" in CLASSES[path].patterns]
OF_BLOCKS = [path for path in FITTING if "blocks" in CLASSES[path].patterns]
OF_HEADS = [path for path in FITTING if "heads" in CLASSES[path].patterns and path not in OF_WEIGHTS]
CASES = [
    *((path, "mixtral", Target(level=0.5)) for path in OF_WEIGHTS),
    *((path, "qwen3_moe", Target("2:4")) for path in OF_WEIGHTS),
    *((path, "olmoe", Target(level=0.3, layers=[1, 3])) for path in OF_WEIGHTS if path.stem in ("wanda", "sparsegpt")),
    *((path, "mixtral", Target("heads", 0.5)) for path in OF_HEADS),
    *((path, "qwen3_moe", Target("blocks", 0.4)) for path in OF_BLOCKS),
    *((path, family, Target("experts", 0.5)) for path in OF_EXPERTS for family in ("mixtral", "qwen3_moe", "olmoe")),
]


def prune(model: PrunableModel, method: Method, target: Target, tokens: Tensor, **order: str) -> PruningResult:
    target.check(model)
    method.check(target)
    return method.prune(PruningContext(model, target, Calibration(tokens, batch_size=4, **order)))


def named(value: object) -> str:
    if isinstance(value, Target):
        return str(value.pattern)
    return value.stem if isinstance(value, Path) else str(value)


@pytest.mark.parametrize(("path", "family", "target"), CASES, ids=named)
def test_a_method_keeps_its_promises_on_experts(
    tiny_model: Callable[..., PrunableModel],
    composed: Callable[..., DictConfig],
    random_tokens: Callable[..., Tensor],
    path: Path,
    family: str,
    target: Target,
):
    """The level is reached, in every expert, routers are as they were, and the same comes out again."""
    method, tokens = instantiate(composed(f"method={path.stem}").method), random_tokens(6, 16)
    model, again, dense = (tiny_model(family) for _ in range(3))
    result = prune(model, method, target, tokens)
    check_reached(model, target, method, result, {})
    prune(again, method, target, tokens)
    assert all(torch.equal(value, model.hf.state_dict()[name]) for name, value in again.hf.state_dict().items())
    assert torch.isfinite(model.hf(tokens).logits).all()
    units = [] if target.kind in ("unstructured", "N:M") else target.units(model)
    assert list(result.masks) == [each.name for each in units or target.linears(model)]
    for each in units:
        assert torch.equal(result.masks[each.name], ~each.zero)
    for block, before in zip(model.blocks, dense.blocks, strict=True):
        if moe := moe_of(block):
            removed = torch.zeros(6, dtype=torch.bool)
            if target.kind == "experts":
                removed = ~result.masks[f"{block.name}.experts"]
                assert int(removed.sum()) == 3
                assert torch.equal(moe.removed, removed)
            router = moe_of(before).router.weight
            assert torch.equal(moe.router.weight, router.masked_fill(removed[:, None], 0))


@pytest.mark.parametrize("path", OF_WEIGHTS, ids=named)
def test_zeros_of_experts_stay_and_the_level_is_reached(
    tiny_model: Callable[..., PrunableModel],
    composed: Callable[..., DictConfig],
    random_tokens: Callable[..., Tensor],
    path: Path,
):
    """Also of experts that are removed, and with inputs that are collected after every layer."""
    method, model = instantiate(composed(f"method={path.stem}").method), tiny_model("mixtral")
    for linear in model.linears:
        linear.weight.mul_(torch.rand(linear.shape, generator=torch.Generator().manual_seed(1)) > 0.2)
    all_experts(model)[1].apply(torch.arange(6) > 0)
    before, target = masks_of_zeros(model), Target(level=0.5)
    result = prune(model, method, target, random_tokens(6, 16), sequential="layer")
    check_zeros(model, before, "pruning")
    check_reached(model, target, method, result, before)
