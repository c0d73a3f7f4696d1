"""What every method in ``conf/method`` promises, on every family of models."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig
from torch import Tensor

from prune_lab.models.block import Block
from prune_lab.models.model import PrunableModel
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.masks import Masks, count_dropped
from prune_lab.pruning.methods.data_free import DataFreeMethod
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.methods.trained import TrainedMethod
from prune_lab.pruning.reached import check_reached
from prune_lab.pruning.result import LayerRow, PruningResult
from prune_lab.pruning.resume import FinishedBlocks
from prune_lab.pruning.target import Target
from prune_lab.run.conf_folder import conf_folder
from prune_lab.training.settings import Training
from tests.conftest import FAMILY_NAMES

ALL = sorted((conf_folder() / "method").glob("*.yaml"))
CLASSES = {path: get_class(yaml.safe_load(path.read_text(encoding="utf-8"))["_target_"]) for path in ALL}
TRAINED = [path for path in ALL if CLASSES[path].trains]
REWRITING = [path for path in ALL if CLASSES[path].rewrites]  # in tests/unit/pruning/methods/test_rotated.py
YAMLS = [path for path in ALL if path not in [*TRAINED, *REWRITING] and "unstructured" in CLASSES[path].patterns]
OF_UNITS = [path for path in ALL if path not in TRAINED and "width" in CLASSES[path].patterns]
UNITS_ALONE = [path for path in OF_UNITS if path not in YAMLS]
DEPTH = [path for path in ALL if "blocks" in CLASSES[path].patterns and path not in YAMLS]
SIZED = {"low_rank": ["method.rank=1", "method.share=null"]}
"""What is set for layers as small as these."""
TARGETS = {
    "half": Target(level=0.5),
    "uneven": Target(level=0.29, layers=[1, 3]),
    "2:4": Target("2:4"),
}


@pytest.fixture(params=YAMLS, ids=lambda path: path.stem)
def method(request: pytest.FixtureRequest, composed: Callable[..., DictConfig]) -> Method:
    path: Path = request.param
    return instantiate(composed(f"method={path.stem}", *SIZED.get(path.stem, [])).method)


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    return TARGETS[request.param]


def prune(model: PrunableModel, method: Method, target: Target, tokens: Tensor) -> PruningResult:
    context = PruningContext(model, target, Calibration(tokens, batch_size=4), training=Training(steps=6, batch_size=4))
    method.check(target)
    method.check_training(context.training, None)
    method.check_model(model, target)
    target.check(model)
    return method.prune(context)


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
    result = prune(model, method, target, tokens)
    masks = result.masks
    linears = target.linears(model)
    if type(method).__name__ == "Dense":
        assert masks == {}
        assert result.layers == {}
        linears = []
    assert list(masks) == [linear.name for linear in linears]
    for linear in linears:
        keep = masks[linear.name]
        assert (keep.dtype, keep.device.type, tuple(keep.shape)) == (torch.bool, "cpu", linear.shape)
        assert torch.equal(keep, linear.weight != 0)
    assert_sparsity(masks, target, sum(pair.parameters for pair in result.pairs.values()))
    assert list(result.layers) == [linear.name for linear in linears]
    assert result.progress is None
    for name, row in result.layers.items():
        assert row.name == name
        assert row.shape == tuple(masks[name].shape)
        beside = row.rank * sum(row.shape) / math.prod(row.shape)
        assert row.sparsity == pytest.approx(float((~masks[name]).float().mean()) - beside, abs=1e-6)
        assert 0 < row.error < 2
        assert row.seconds >= 0
    assert_the_rest_is_unchanged(model, before, {f"{name}.weight" for name in masks})
    assert torch.isfinite(model.hf(tokens).logits).all()
    assert_same_again(model, tiny_model(family), method, target, tokens)


@pytest.mark.parametrize("path", DEPTH, ids=lambda path: path.stem)
def test_a_method_that_removes_blocks_keeps_its_promises(
    tiny_model: Callable[..., PrunableModel],
    family: str,
    path: Path,
    composed: Callable[..., DictConfig],
    random_tokens: Callable[..., Tensor],
):
    """What goes is zero, biases too; nothing else changes, and masks are of the units."""
    settings = composed(f"method={path.stem}")
    method, target = instantiate(settings.method), Target("blocks", 0.67)
    assert settings.sparsity.pattern in method.patterns
    model, tokens = tiny_model(family), random_tokens(6, 16)
    before = weights(model)
    result = prune(model, method, target, tokens)
    units = target.units(model)[0]
    assert list(result.masks) == [units.name]
    gone = ~result.masks[units.name]
    assert int(gone.count_nonzero()) == 2
    assert sorted(result.notes["removed_blocks"]) == gone.nonzero().flatten().tolist()
    assert torch.equal(units.zero, gone)
    assert list(result.layers) == [linear.name for linear in model.linears]
    for block in model.blocks:
        for linear in block.linears:
            row = result.layers[linear.name]
            assert (row.shape, row.sparsity) == (linear.shape, float(gone[block.index]))
            assert row.seconds >= 0
            assert row.error == pytest.approx(float(gone[block.index]), abs=1e-6)
    linears = {linear.module for block in model.blocks if gone[block.index] for linear in block.linears}
    touched = {name for name, module in model.hf.named_modules() if module in linears}
    for name, tensor in model.hf.state_dict().items():
        if name.rpartition(".")[0] not in touched:
            assert torch.equal(tensor, before[name]), name
    assert torch.isfinite(model.hf(tokens).logits).all()
    assert method.allocation_conflict is not None
    assert_same_again(model, tiny_model(family), method, target, tokens)


def assert_sparsity(masks: Masks, target: Target, beside: int = 0) -> None:
    """``floor(s n)`` go, ``n`` being the weights of a row, of a layer or of the model; and as many as stand beside."""
    if target.n_of_m:
        n, m = target.n_of_m
        assert all((keep.unflatten(1, (-1, m)).sum(-1) == n).all() for keep in masks.values())
        return
    dropped = sum(int((~keep).sum()) for keep in masks.values()) - beside
    least = sum(keep.shape[0] * count_dropped(target.sparsity, keep.shape[1]) for keep in masks.values())
    assert least <= dropped <= count_dropped(target.sparsity, sum(keep.numel() for keep in masks.values()))


def assert_the_rest_is_unchanged(model: PrunableModel, before: dict[str, Tensor], pruned: set[str]) -> None:
    with model.adapter.off() if model.adapter else nullcontext():
        for name, tensor in model.hf.state_dict().items():
            assert torch.equal(tensor, before[name]) is (name not in pruned), name


def assert_same_again(
    model: PrunableModel, fresh: PrunableModel, method: Method, target: Target, tokens: Tensor
) -> None:
    prune(fresh, method, target, tokens)
    for name, tensor in fresh.hf.state_dict().items():
        assert torch.equal(tensor, model.hf.state_dict()[name]), name


class Interrupted(FinishedBlocks):
    """Blocks that are kept until the pruning is interrupted, before it begins with block ``at``."""

    at = 2

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "these", every=0)
        self.pruned: list[int] = []
        self._begun = 0

    def settle(self, result: PruningResult) -> None:
        super().settle(result)
        if self._begun == self.at:
            raise KeyboardInterrupt
        self._begun += 1

    def note(self, block: Block) -> None:
        self.pruned.append(block.index)
        super().note(block)


class Undisturbed(Interrupted):
    """Likewise, without the interruption."""

    at = -1


@pytest.mark.parametrize("propagate", ["pruned", "dense"])
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_a_pruning_that_was_interrupted_goes_on_to_the_same_result(
    tiny_model: Callable[..., PrunableModel],
    family: str,
    method: Method,
    propagate: str,
    random_tokens: Callable[..., Tensor],
    tmp_path: Path,
):
    """The blocks before the interruption are not pruned again."""
    if type(method).__name__ == "Dense" or isinstance(method, DataFreeMethod):
        pytest.skip("prunes in no time")
    calibration = Calibration(random_tokens(6, 16), batch_size=4, propagate=propagate)
    target = Target(level=0.5)
    whole = tiny_model(family)
    expected = method.prune(PruningContext(whole, target, calibration))

    first, model = Interrupted(tmp_path), tiny_model(family)
    with pytest.raises(KeyboardInterrupt):
        method.prune(PruningContext(model, target, calibration, finished_blocks=first))
    second, model = Undisturbed(tmp_path), tiny_model(family)
    again = method.prune(PruningContext(model, target, calibration, finished_blocks=second))
    assert (first.pruned, second.pruned) == ([0, 1], list(range(2, len(model.blocks))))
    assert list(again.masks) == list(expected.masks)
    assert all(torch.equal(again.masks[name], expected.masks[name]) for name in expected.masks)
    assert all(torch.equal(tensor, model.hf.state_dict()[name]) for name, tensor in whole.hf.state_dict().items())
    assert without_seconds(again) == without_seconds(expected)


def without_seconds(result: PruningResult) -> list[LayerRow]:
    return [replace(row, seconds=0) for row in result.layers.values()]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_one_method_prunes_two_models_at_once_as_one_after_the_other(
    tiny_model: Callable[..., PrunableModel],
    path: Path,
    composed: Callable[..., DictConfig],
    random_tokens: Callable[..., Tensor],
):
    """Methods keep nothing of a pruning: two in turn and two in threads leave what each leaves alone."""
    method = instantiate(composed(f"method={path.stem}", *SIZED.get(path.stem, [])).method)
    target = Target("blocks", 0.5) if path in DEPTH else Target(level=0.5)
    family = "opt"
    if method.patterns == {"experts"}:
        family, target = "mixtral", Target("experts", 0.5)
    if path in UNITS_ALONE or (path in TRAINED and "neurons" in method.patterns):
        target = Target("neurons", 0.5)

    def pruned(model: PrunableModel, tokens: Tensor) -> tuple[dict[str, Tensor], PruningResult]:
        result = prune(model, method, target, tokens)
        return model.hf.state_dict(), result

    def models() -> list[PrunableModel]:
        return [tiny_model(family, seed=seed) for seed in range(2)]

    tokens = [random_tokens(6, 16, seed) for seed in range(2)]
    alone = list(map(pruned, models(), tokens))
    if path in TRAINED:  # accelerate keeps one state for all trainings of a process
        again = list(map(pruned, models(), tokens))
    else:
        with ThreadPoolExecutor(2) as pool:
            again = list(pool.map(pruned, models(), tokens))
    for (weights_once, once), (weights_twice, twice) in zip(alone, again, strict=True):
        assert all(torch.equal(tensor, weights_twice[name]) for name, tensor in weights_once.items())
        assert list(once.masks) == list(twice.masks)
        assert all(torch.equal(once.masks[name], twice.masks[name]) for name in once.masks)
        assert (once.progress is not None) is (path in TRAINED)


def families_of(pattern: str) -> list[str]:
    """Of query heads some of those whose queries share keys, of keys those in which single ones can go."""
    if "keys" in pattern:
        return ["llama", "opt", "qwen2"]
    return ["gemma3_text", "llama", "qwen2"] if "query_heads" in pattern else FAMILY_NAMES


@pytest.mark.parametrize(
    ("family", "path", "pattern"),
    [
        pytest.param(family, path, pattern, id=f"{family}-{path.stem}-{pattern}")
        for path in OF_UNITS
        for pattern in (
            "neurons",
            "heads",
            "width",
            "query_heads",
            "neurons_query_heads",
            "values",
            "neurons_values",
            "keys",
            "neurons_values_keys",
        )
        if pattern in CLASSES[path].patterns
        for family in families_of(pattern)
    ],
)
def test_a_method_removes_neurons_and_heads_whole(
    tiny_model: Callable[..., PrunableModel],
    family: str,
    path: Path,
    pattern: str,
    composed: Callable[..., DictConfig],
    random_tokens: Callable[..., Tensor],
):
    """All that belongs to a unit that went is zero, and as much went as was asked for."""
    method, target = instantiate(composed(f"method={path.stem}").method), Target(pattern, 0.5)
    model, tokens = tiny_model(family), random_tokens(6, 16)
    result = prune(model, method, target, tokens)
    units = {each.name: each for each in target.units(model)}
    assert list(result.masks) == list(units)
    for name, each in units.items():
        keep = result.masks[name]
        assert torch.equal(keep, ~each.zero)
        for member in each.members:
            kept = member.spread(keep)
            assert not member.linear.weight.movedim(member.dim, 0)[~kept].any()
            assert member.bias is None or not member.bias[~kept].any()
    check_reached(model, target, method, result, {})
    assert set(result.layers) == {member.linear.name for each in units.values() for member in each.members}
    assert all(0 < row.error < 2 for row in result.layers.values() if row.sparsity > 0)
    assert torch.isfinite(model.hf(tokens).logits).all()
    assert_same_again(model, tiny_model(family), method, target, tokens)


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_a_method_that_trains_reports_its_units(
    tiny_model: Callable[..., PrunableModel],
    path: Path,
    composed: Callable[..., DictConfig],
    random_tokens: Callable[..., Tensor],
):
    method = instantiate(composed(f"method={path.stem}").method)
    target = Target("neurons" if "neurons" in method.patterns else "unstructured", 0.5)
    model = tiny_model("llama")
    result = prune(model, method, target, random_tokens(6, 16))
    assert list(result.layers) == list(result.masks) == [units.name for units in target.units(model)]
    for name, row in result.layers.items():
        assert row.shape == (len(result.masks[name]), result.masks[name][0].numel())
        assert row.sparsity == pytest.approx(float((~result.masks[name]).float().mean()), abs=1e-6)
        assert (row.error, row.block_error, row.seconds) == (None, None, None)
    assert (method.allocation_conflict is not None) == isinstance(method, TrainedMethod)  # its own scores share it out
    assert len(result.progress.losses) == 6
