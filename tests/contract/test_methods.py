"""What every method in ``conf/method`` promises, on every family of models."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig
from torch import Tensor

from prune_lab.models.model import PrunableModel
from prune_lab.models.view import Block
from prune_lab.pruning.calibration.blocks import BlockInputs, Calibration
from prune_lab.pruning.calibration.resume import FinishedBlocks
from prune_lab.pruning.masks import Masks, count_dropped
from prune_lab.pruning.methods.method import BlockMethod, DataFreeMethod, Method
from prune_lab.pruning.methods.trained import TrainedMethod
from prune_lab.pruning.target import Target
from prune_lab.run.conf_folder import conf_folder

YAMLS = [  # those that train are in tests/unit/pruning/methods/test_trained.py
    path
    for path in sorted((conf_folder() / "method").glob("*.yaml"))
    if not issubclass(get_class(yaml.safe_load(path.read_text(encoding="utf-8"))["_target_"]), TrainedMethod)
]
TARGETS = {
    "half": Target(level=0.5),
    "uneven": Target(level=0.29, layers=[1, 3]),
    "2:4": Target("2:4"),
}


@pytest.fixture(params=YAMLS, ids=lambda path: path.stem)
def method(request: pytest.FixtureRequest, composed: Callable[..., DictConfig]) -> Method:
    path: Path = request.param
    return instantiate(composed(f"method={path.stem}").method)


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    return TARGETS[request.param]


def prune(model: PrunableModel, method: Method, target: Target, tokens: Tensor) -> tuple[Masks, Calibration]:
    calibration = Calibration(tokens, batch_size=4, seed=0)
    method.check(target)
    target.check(model)
    return method.prune(model, calibration, target), calibration


def weights(model: PrunableModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}


def test_there_are_methods_to_test():
    assert {"dense", "random", "magnitude", "wanda", "sparsegpt"} <= {path.stem for path in YAMLS}


def test_a_method_keeps_its_promises(
    tiny_model: Callable[..., PrunableModel],
    family: str,
    method: Method,
    target: Target,
    random_tokens: Callable[..., Tensor],
):
    model, tokens = tiny_model(family), random_tokens(6, 16)
    before = weights(model)
    masks, calibration = prune(model, method, target, tokens)
    linears = target.linears(model)
    if type(method).__name__ == "Dense":
        assert masks == {}
        assert calibration.rows == []
        linears = []
    assert list(masks) == [linear.name for linear in linears]
    for linear in linears:
        keep = masks[linear.name]
        assert (keep.dtype, keep.device.type, tuple(keep.shape)) == (torch.bool, "cpu", linear.shape)
        assert torch.equal(keep, linear.weight != 0)
    assert_sparsity(masks, target)
    rows = {row.name: row for row in calibration.rows}
    assert list(rows) == [linear.name for linear in linears]
    for name, row in rows.items():
        assert row.shape == tuple(masks[name].shape)
        assert row.sparsity == pytest.approx(float((~masks[name]).float().mean()), abs=1e-6)
        assert 0 < row.error < 2
        assert row.seconds >= 0
    assert_the_rest_is_unchanged(model, before, {f"{name}.weight" for name in masks})
    assert torch.isfinite(model.hf(tokens).logits).all()
    assert_same_again(model, tiny_model(family), method, target, tokens)


def assert_sparsity(masks: Masks, target: Target) -> None:
    """``floor(s n)`` go, ``n`` being the weights of a row, of a layer or of the model."""
    if target.n_of_m:
        n, m = target.n_of_m
        assert all((keep.unflatten(1, (-1, m)).sum(-1) == n).all() for keep in masks.values())
        return
    dropped = sum(int((~keep).sum()) for keep in masks.values())
    least = sum(keep.shape[0] * count_dropped(target.sparsity, keep.shape[1]) for keep in masks.values())
    assert least <= dropped <= count_dropped(target.sparsity, sum(keep.numel() for keep in masks.values()))


def assert_the_rest_is_unchanged(model: PrunableModel, before: dict[str, Tensor], pruned: set[str]) -> None:
    for name, tensor in model.hf.state_dict().items():
        assert torch.equal(tensor, before[name]) is (name not in pruned), name


def assert_same_again(
    model: PrunableModel, fresh: PrunableModel, method: Method, target: Target, tokens: Tensor
) -> None:
    prune(fresh, method, target, tokens)
    for name, tensor in fresh.hf.state_dict().items():
        assert torch.equal(tensor, model.hf.state_dict()[name]), name


@pytest.mark.parametrize("propagate", ["pruned", "dense"])
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_a_pruning_that_was_interrupted_goes_on_to_the_same_result(
    tiny_model: Callable[..., PrunableModel],
    family: str,
    method: Method,
    propagate: str,
    random_tokens: Callable[..., Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """The blocks before the interruption are not pruned again."""
    if not isinstance(method, BlockMethod) or isinstance(method, DataFreeMethod):
        pytest.skip("prunes in no time")
    tokens, target = random_tokens(6, 16), Target(level=0.5)
    calibration = partial(Calibration, tokens, batch_size=4, seed=0, propagate=propagate)
    whole, whole_rows = tiny_model(family), calibration()
    masks = method.prune(whole, whole_rows, target)

    prune_block, pruned, limit = method.prune_block, [], [2]

    def until_the_third(block: Block, inputs: BlockInputs, wanted: Target) -> Masks:
        if len(pruned) == limit[0]:
            raise KeyboardInterrupt
        pruned.append(block.index)
        return prune_block(block, inputs, wanted)

    monkeypatch.setattr(method, "prune_block", until_the_third)
    method.done = FinishedBlocks(tmp_path, "these", every=0)
    with pytest.raises(KeyboardInterrupt):
        method.prune(tiny_model(family), calibration(), target)
    limit[0] = 99
    model, rows = tiny_model(family), calibration()
    method.done = FinishedBlocks(tmp_path, "these", every=0)
    again = method.prune(model, rows, target)
    assert pruned == [0, 1, *range(2, len(model.blocks))]
    assert list(again) == list(masks)
    assert all(torch.equal(again[name], masks[name]) for name in masks)
    assert all(torch.equal(tensor, model.hf.state_dict()[name]) for name, tensor in whole.hf.state_dict().items())
    assert [replace(row, seconds=0) for row in rows.rows] == [replace(row, seconds=0) for row in whole_rows.rows]
