from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from prune_lab.pruning.calibration.blocks import iterate_blocks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.utils import products
from prune_lab.utils.products import fast_products
from tests.product_types import ProductTypes

CPU = torch.device("cpu")
HALF = (torch.bfloat16, torch.float16)


@pytest.fixture
def slow(monkeypatch):
    """The processor has no instructions for half precision, whatever it is."""
    monkeypatch.setattr(products, "has_amx", lambda: False)
    monkeypatch.setattr(products, "has_avx512_bfloat16", lambda: False)


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "dtype", "slow"),
    [
        (True, True, torch.bfloat16, False),
        (True, True, torch.float16, False),
        (False, True, torch.bfloat16, False),  # an EPYC of the fourth generation: 390 GFLOP/s, and 184 in float32
        (False, True, torch.float16, True),  # 37 GFLOP/s there
        (False, False, torch.bfloat16, True),
        (False, False, torch.float32, False),
    ],
)
def test_which_types_a_processor_is_slow_at(amx, avx512_bf16, dtype, slow, monkeypatch):
    monkeypatch.setattr(products, "has_amx", lambda: amx)
    monkeypatch.setattr(products, "has_avx512_bfloat16", lambda: avx512_bf16)
    assert products.is_slow_at(dtype, CPU) is slow
    assert not products.is_slow_at(dtype, torch.device("cuda"))


def numbers(*shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exactly(found, exact):
    """Whether numbers are the exact ones, rounded once to their type: at most one step of it away."""
    steps = torch.finfo(found.dtype).eps * exact.abs().clamp(min=1e-2)
    return bool(((found.double() - exact).abs() <= steps).all())


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("shape", [(40, 24), (2, 20, 24), (3, 24)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_layer_rounds_its_exact_products_once(slow, dtype, shape, with_bias):
    inputs, weight = numbers(*shape, dtype=dtype), numbers(50, 24, dtype=dtype, seed=1)
    bias = numbers(50, dtype=dtype, seed=2) if with_bias else None
    with fast_products(dtype, CPU):
        found = F.linear(inputs, weight, bias=bias)
    exact = F.linear(inputs.double(), weight.double(), None if bias is None else bias.double())
    assert found.dtype == dtype and exactly(found, exact)


@pytest.mark.parametrize("dtype", HALF)
def test_other_products_round_once_too(slow, dtype):
    left, right = numbers(3, 20, 24, dtype=dtype), numbers(3, 24, 30, dtype=dtype, seed=1)
    shift = numbers(30, dtype=dtype, seed=2)
    with fast_products(dtype, CPU):
        found = [left @ right, torch.matmul(left, right), torch.bmm(left, right), left.bmm(right)]
        moved = torch.addmm(shift, left[0], right[0])
    for each in found:
        assert each.dtype == dtype and exactly(each, left.double() @ right.double())
    assert moved.dtype == dtype and exactly(moved, shift.double() + left[0].double() @ right[0].double())


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="PyTorch before 2.10 has no such product")
@pytest.mark.parametrize("dtype", HALF)
def test_experts_multiply_their_own_rows(slow, dtype):
    rows, weights = numbers(60, 24, dtype=dtype), numbers(4, 30, 24, dtype=dtype, seed=1).mT
    ends = torch.tensor([20, 20, 22, 57], dtype=torch.int32)  # none, few and many rows, and some of no expert
    with fast_products(dtype, CPU):
        found = F.grouped_mm(rows, weights, offs=ends)
    assert found.dtype == dtype and found.shape == (60, 30)
    exact = [
        rows[a:b].double() @ weights[i].double() for i, (a, b) in enumerate([(0, 20), (20, 20), (20, 22), (22, 57)])
    ]
    assert exactly(found[:57], torch.cat(exact))


def test_a_large_weight_is_widened_in_parts(slow, monkeypatch):
    inputs, weight, bias = (numbers(*shape, dtype=torch.bfloat16) for shape in ((2, 20, 24), (50, 24), (50,)))
    with fast_products(torch.bfloat16, CPU):
        whole = F.linear(inputs, weight, bias)
        monkeypatch.setattr(products, "_CHUNK", 7 * 24)
        assert torch.equal(F.linear(inputs, weight, bias), whole)


@pytest.mark.parametrize("chunk", [2**24, 100])
def test_gradients_flow_and_keep_their_type(slow, monkeypatch, chunk):
    monkeypatch.setattr(products, "_CHUNK", chunk)
    layer, inputs = nn.Linear(24, 30).to(torch.bfloat16), numbers(40, 24, dtype=torch.bfloat16)
    with fast_products(torch.bfloat16, CPU):
        layer(inputs).float().square().sum().backward()
    grad = layer.weight.grad
    wide = nn.Linear(24, 30)
    wide.load_state_dict({name: each.float() for name, each in layer.state_dict().items()})
    wide(inputs.float()).square().sum().backward()
    assert grad.dtype == torch.bfloat16
    assert (grad.float() - wide.weight.grad).norm() < 0.01 * wide.weight.grad.norm()


def test_activations_that_are_computed_again_are_so_inside(slow):
    grads, inside = [], partial(fast_products, torch.bfloat16, CPU)
    for again in (False, True):
        layer, inputs = nn.Linear(24, 24), numbers(40, 24, dtype=torch.bfloat16, seed=1).requires_grad_()
        layer.load_state_dict({"weight": numbers(24, 24, dtype=torch.float32), "bias": torch.zeros(24)})
        block = nn.Sequential(layer.to(torch.bfloat16), nn.Tanh(), layer)
        with inside():
            if again:
                out = checkpoint(block, inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), inside()))
            else:
                out = block(inputs)
        with ProductTypes() as types:
            out.float().square().sum().backward()
        assert types.seen == {torch.float32}
        grads.append((layer.weight.grad, inputs.grad))
    assert all(torch.equal(*each) for each in zip(*grads, strict=True))


@pytest.mark.parametrize("slow_at", [True, False])
def test_mixed_precision_rounds_as_it_does_elsewhere(monkeypatch, slow_at):
    """Float32 weights and inputs are rounded to bfloat16, and so are products and gradients on their way."""
    monkeypatch.setattr(products, "has_amx", lambda: not slow_at)
    layer, inputs = nn.Linear(24, 30), numbers(40, 24, dtype=torch.float32)
    layer.load_state_dict({"weight": numbers(30, 24, dtype=torch.float32, seed=1), "bias": torch.zeros(30)})
    with fast_products(torch.bfloat16, CPU), ProductTypes() as types:
        with torch.autocast("cpu", torch.bfloat16):
            out, product = layer(inputs), inputs @ layer.weight.T
        out.sum().backward()
    exact = inputs.bfloat16().double() @ layer.weight.bfloat16().double().T
    assert out.dtype == product.dtype == torch.bfloat16 and exactly(out, exact) and exactly(product, exact)
    assert layer.weight.grad.dtype == torch.float32
    goal = torch.ones(40, 30).double().T @ inputs.bfloat16().double()
    assert (layer.weight.grad - goal).norm() < 0.01 * goal.norm()
    assert types.seen == {torch.float32 if slow_at else torch.bfloat16}


def types_of(dtype, *shape):
    with torch.no_grad(), ProductTypes() as types, fast_products(torch.bfloat16, CPU):
        F.linear(numbers(*shape, dtype=dtype), numbers(30, 24, dtype=dtype))
    return types.seen


def test_few_rows_and_other_types_are_left_alone(slow):
    assert types_of(torch.bfloat16, 40, 24) == {torch.float32}
    assert types_of(torch.bfloat16, 1, 1, 24) == {torch.bfloat16}
    assert types_of(torch.float64, 40, 24) == {torch.float64}


def test_where_the_processor_is_fast_nothing_changes(monkeypatch):
    monkeypatch.setattr(products, "has_amx", lambda: True)
    assert types_of(torch.bfloat16, 40, 24) == {torch.bfloat16}


@pytest.mark.parametrize("family", ["opt", "llama", "gpt2", "gemma3_text"])
def test_a_model_computes_so_unless_it_is_timed(slow, tiny_model, random_tokens, family):
    model, tokens = tiny_model(family, torch.bfloat16), random_tokens(2, 16)
    with model.placed(CPU) as hf, torch.no_grad(), ProductTypes() as types:
        hf(tokens, use_cache=False)
    assert torch.float32 in types.seen
    with model.placed(CPU, timed=True) as hf, torch.no_grad(), ProductTypes() as types:
        hf(tokens, use_cache=False)
    assert torch.bfloat16 in types.seen


@pytest.mark.parametrize("family", ["opt", "llama", "gpt2", "gemma3_text"])
def test_the_walk_computes_what_the_model_does(slow, tiny_model, random_tokens, family):
    model, tokens = tiny_model(family, torch.bfloat16), random_tokens(2, 16)
    with model.placed(CPU) as hf, torch.no_grad():
        states = hf(tokens, use_cache=False, output_hidden_states=True).hidden_states
    walked = [inputs.hidden.clone() for _, inputs in iterate_blocks(model, Calibration(tokens, batch_size=2))]
    assert len(walked) == len(model.blocks)
    for walk, own in zip(walked, states[:-1], strict=True):
        assert torch.equal(walk, own)
