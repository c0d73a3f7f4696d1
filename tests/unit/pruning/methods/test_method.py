import time

import pytest
import torch

from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.admm import ADMM
from prune_lab.pruning.methods.alps import ALPS
from prune_lab.pruning.methods.dense import Dense
from prune_lab.pruning.methods.dsnot import DSnoT
from prune_lab.pruning.methods.least_squares import LeastSquares
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.methods.random import Random
from prune_lab.pruning.methods.reconstruction import Reconstruction
from prune_lab.pruning.methods.ria import RIA
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.methods.sparsellm import SparseLLM
from prune_lab.pruning.methods.sparseswaps import SparseSwaps
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.methods.wanda_variant import WandaVariant
from prune_lab.pruning.target import Target

METHODS = [Magnitude(), Magnitude("row"), Random(), Wanda(), SparseGPT()]
FIELD = [
    SparseLLM(),
    RIA(),
    WandaVariant(),
    DSnoT(Wanda()),
    SparseSwaps(Wanda()),
    ADMM(),
    ALPS(),
    LeastSquares(Wanda()),
]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_blocks_outside_the_range_are_left_bit_for_bit(tiny_model, random_tokens, method):
    model = tiny_model("llama")
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    calibration = Calibration(random_tokens(4, 16), batch_size=3)
    result = method.prune(PruningContext(model, Target(level=0.5, layers=[1, 2]), calibration))
    pruned = {linear.name for linear in model.blocks[1].linears}
    assert set(result.masks) == pruned == set(result.layers)
    for name, tensor in model.hf.state_dict().items():
        changed = name.removesuffix(".weight") in pruned
        assert torch.equal(tensor, before[name]) is not changed, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_half_precision_models_are_pruned_in_their_own_type(tiny_model, random_tokens, method, dtype):
    model = tiny_model("qwen3", dtype)
    masks = method.prune(PruningContext(model, Target(level=0.5), Calibration(random_tokens(4, 16)))).masks
    for linear in model.linears:
        assert linear.weight.dtype == dtype
        assert not linear.weight[~masks[linear.name]].any()
        assert int((~masks[linear.name]).sum()) == masks[linear.name].numel() // 2
    assert torch.isfinite(model.hf(random_tokens(1, 8)).logits).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["opt", "llama"])
@pytest.mark.parametrize("method", FIELD, ids=lambda method: type(method).__name__)
def test_nothing_breaks_at_95_percent_in_any_type(tiny_model, random_tokens, method, family, dtype):
    model = tiny_model(family, dtype)
    method.prune(PruningContext(model, Target(level=0.95), Calibration(random_tokens(6, 16))))
    assert torch.isfinite(model.hf(random_tokens(1, 8)).logits).all()
    zeros = sum(int((linear.weight == 0).sum()) for linear in model.linears)
    assert 0.93 < zeros / sum(linear.weight.numel() for linear in model.linears) < 0.96


@pytest.mark.parametrize("pattern", ["1:2", "1:4", "3:4", "6:8", "7:16"])
@pytest.mark.parametrize("method", [Magnitude(), Random(), Wanda(), SparseGPT(), SparseGPT(block_size=20)], ids=repr)
def test_any_pattern_that_divides_is_obeyed_in_every_group(tiny_model, random_tokens, method, pattern):
    target = Target(pattern)
    n, m = target.n_of_m
    masks = method.prune(PruningContext(tiny_model("opt"), target, Calibration(random_tokens(4, 16)))).masks
    assert len(masks) == 18
    for mask in masks.values():
        assert (mask.unflatten(1, (-1, m)).sum(-1) == n).all()


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_budget_is_obeyed_by_name(tiny_model, random_tokens, method):
    model = tiny_model("opt")
    name = model.blocks[1].linears[2].name
    masks = method.prune(
        PruningContext(model, Target(level=0.5, budget={name: 0.25}), Calibration(random_tokens(4, 16)))
    ).masks
    for linear, mask in masks.items():
        assert int((~mask).sum()) == mask.numel() // (4 if linear == name else 2)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_level_zero_changes_nothing_beyond_rounding(tiny_model, random_tokens, method):
    model = tiny_model("opt")
    dense = {linear.name: linear.weight.clone() for linear in model.linears}
    masks = method.prune(PruningContext(model, Target(level=0.0), Calibration(random_tokens(8, 16)))).masks
    for linear in model.linears:
        assert masks[linear.name].all()
        torch.testing.assert_close(linear.weight, dense[linear.name], rtol=1e-4, atol=1e-5)


def test_dense_prunes_nothing(tiny_model, random_tokens):
    model = tiny_model("opt")
    before = model.fingerprint()
    assert Dense().prune(PruningContext(model, Target(level=0.9), Calibration(random_tokens(2, 8)))).masks == {}
    assert model.fingerprint() == before


@pytest.mark.parametrize(
    ("method", "target"),
    [
        (Wanda(), Target(level=0.5)),
        (Magnitude(), Target(level=0.5)),
        (Magnitude(), Target("neurons", 0.5)),
        (DSnoT(Magnitude(), tolerance=0.0), Target(level=0.5)),
        (SparseLLM(rounds=2), Target(level=0.5)),
        (Reconstruction(Magnitude()), Target(level=0.5)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Method) else value.kind,
)
def test_rows_have_the_error_of_their_block_and_their_part_of_the_time_that_passed(
    tiny_model, random_tokens, method, target
):
    model, tokens = tiny_model("llama"), random_tokens(6, 16)
    start = time.perf_counter()
    rows = method.prune(PruningContext(model, target, Calibration(tokens))).layers.values()
    passed = time.perf_counter() - start
    assert all(row.seconds > 0 and row.block_error > 0 for row in rows)
    assert sum(row.seconds for row in rows) < passed
