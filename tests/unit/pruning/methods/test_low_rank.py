import logging
from pathlib import Path

import pytest
import torch

from prune_lab.errors import BadInput
from prune_lab.pruning.calibration.blocks import iterate_blocks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.collect import collect
from prune_lab.pruning.calibration.statistics import Hessian
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.least_squares import LeastSquares
from prune_lab.pruning.methods.low_rank import LowRank
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.methods.ria import RIA
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.reached import check_reached, sparsity_in_range
from prune_lab.pruning.resume import FinishedBlocks
from prune_lab.pruning.target import Target

HALF = Target(level=0.5)
RANK = {"rank": 2, "share": None}


def context(model, tokens, target=HALF, **order) -> PruningContext:
    kept = order.pop("finished_blocks", None)
    return PruningContext(model, target, Calibration(tokens, batch_size=2, **order), finished_blocks=kept)


def beside(result) -> int:
    return sum(pair.parameters for pair in result.pairs.values())


@pytest.mark.parametrize("inner", [Magnitude, Wanda, SparseGPT])
def test_what_stays_is_what_was_asked_for_with_the_ranks(tiny_model, random_tokens, family, inner):
    model, method = tiny_model(family), LowRank(inner(), **RANK)
    result = method.prune(context(model, random_tokens(4, 16)))
    entries = sum(linear.weight.numel() for linear in model.linears)
    kept = sum(int(linear.weight.count_nonzero()) for linear in model.linears)
    assert beside(result) == sum(2 * sum(linear.shape) for linear in model.linears)
    assert kept + beside(result) == entries // 2
    assert sparsity_in_range(model, HALF, result) == pytest.approx(0.5)
    for linear in model.linears:
        row = result.layers[linear.name]
        assert torch.equal(result.masks[linear.name], linear.weight != 0)
        assert (row.rank, row.sparsity) == (2, pytest.approx(0.5, abs=1e-3))
    check_reached(model, HALF, method, result, {})


def test_the_model_computes_with_the_ranks_and_without_them_when_they_are_off(tiny_model, random_tokens, family):
    model, tokens = tiny_model(family), random_tokens(4, 16)
    result = LowRank(SparseGPT(), **RANK).prune(context(model, tokens))
    sparse = {linear.name: linear.weight.clone() for linear in model.linears}
    with_ranks = model.hf(tokens).logits
    with model.adapter.off():
        alone = model.hf(tokens).logits
        for linear in model.linears:
            linear.write(sparse[linear.name] + result.pairs[linear.name].product)
        torch.testing.assert_close(model.hf(tokens).logits, with_ranks, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alone, with_ranks, atol=1e-3)


@pytest.mark.parametrize("sequential", ["block", "layer"])
def test_later_blocks_and_layers_see_the_ranks(tiny_model, random_tokens, sequential):
    """The last block's inputs, and with ``layer`` each layer's, are those of the model that is left."""
    model, tokens, seen = tiny_model("llama"), random_tokens(4, 16), []

    class Watched(LowRank):
        def _collected(self, pruning, linears):
            for group in super()._collected(pruning, linears):
                if pruning.block.index == 1:
                    seen.extend((linear.name, group[1].hessian.value) for linear in group[2])
                yield group

    Watched(Magnitude(), **RANK).prune(context(model, tokens, Target(level=0.5, layers=[0, 2]), sequential=sequential))
    for block, inputs in iterate_blocks(model, Calibration(tokens, batch_size=2), 2):
        if block.index == 1:
            found = collect(inputs, Hessian)
            reached = len(block.linears) if sequential == "layer" else 3  # what reads the block's own input
            for name, hessian in seen[:reached]:
                torch.testing.assert_close(hessian, found[name].value, rtol=1e-3, atol=1e-5)
    assert len(seen) == 7


def test_the_errors_are_those_of_both_and_lower_than_of_the_sparse_part(tiny_model, random_tokens):
    tokens, target = random_tokens(4, 16), Target("2:4", layers=[0, 1])
    alone = SparseGPT().prune(context(tiny_model("llama"), tokens, target))
    model = tiny_model("llama")
    result = LowRank(SparseGPT(), rank=4, share=None).prune(context(model, tokens, target))
    for linear in target.linears(model):
        before, after = alone.layers[linear.name], result.layers[linear.name]
        assert torch.equal(alone.masks[linear.name], result.masks[linear.name])
        assert after.error < before.error
        assert after.block_error < before.block_error
        assert after.sparsity == pytest.approx(0.5 - 4 * sum(linear.shape) / linear.weight.numel())


def test_a_pattern_says_that_less_is_removed(tiny_model, random_tokens, caplog):
    caplog.set_level(logging.WARNING)
    model, target = tiny_model("llama"), Target("2:4")
    method = LowRank(SparseGPT(), **RANK)
    result = method.prune(context(model, random_tokens(4, 16), target))
    check_reached(model, target, method, result, {})
    left = sparsity_in_range(model, target, result)
    entries = sum(linear.weight.numel() for linear in model.linears)
    assert left == pytest.approx(0.5 - beside(result) / entries)
    assert f"leaves a sparsity of {100 * left:.2f} %" in caplog.text


def test_a_share_gives_each_layer_a_rank_of_its_own(tiny_model, random_tokens):
    model = tiny_model("llama")
    result = LowRank(Magnitude(), share=0.2).prune(context(model, random_tokens(4, 16)))
    ranks = {linear.name: int(0.2 * linear.weight.numel() / sum(linear.shape)) for linear in model.linears}
    assert {name: pair.rank for name, pair in result.pairs.items()} == ranks
    assert len(set(ranks.values())) > 1
    assert result.notes["low_rank"] == {"parameters": beside(result), "ranks": sorted(set(ranks.values()))}


def test_merged_it_is_dense_and_says_so(tiny_model, random_tokens, caplog):
    caplog.set_level(logging.WARNING)
    tokens, merged, apart = random_tokens(4, 16), tiny_model("gpt2"), tiny_model("gpt2")
    method = LowRank(SparseGPT(), **RANK, merge=True)
    result = method.prune(context(merged, tokens))
    LowRank(SparseGPT(), **RANK).prune(context(apart, tokens))
    assert merged.adapter is None
    assert not result.pairs
    assert "dense" in caplog.text
    assert sparsity_in_range(merged, HALF, result) < 0.01
    assert all(torch.equal(result.masks[linear.name], linear.weight != 0) for linear in merged.linears)
    check_reached(merged, HALF, method, result, {})
    torch.testing.assert_close(merged.hf(tokens).logits, apart.hf(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [{}, {"sequential": "layer", "dense_targets": 1.0}, {"propagate": "dense"}])
@pytest.mark.parametrize("more", [{}, {"rounds": 2}, {"fit": "joint"}])
def test_an_interrupted_pruning_comes_to_the_same(tiny_model, random_tokens, tmp_path: Path, order, more):
    tokens, settings = random_tokens(4, 16), RANK | more

    class Stopped(SparseGPT):
        def prune_block(self, pruning):
            if pruning.block.index == 2:
                raise KeyboardInterrupt
            super().prune_block(pruning)

    def kept() -> FinishedBlocks:
        return FinishedBlocks(tmp_path, "same", every=0)

    whole, resumed = tiny_model("llama"), tiny_model("llama")
    expected = LowRank(SparseGPT(), **settings).prune(context(whole, tokens, **order))
    with pytest.raises(KeyboardInterrupt):
        LowRank(Stopped(), **settings).prune(context(tiny_model("llama"), tokens, finished_blocks=kept(), **order))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["block_0.safetensors", "block_1.safetensors"]
    result = LowRank(SparseGPT(), **settings).prune(context(resumed, tokens, finished_blocks=kept(), **order))
    assert torch.equal(whole.hf(tokens).logits, resumed.hf(tokens).logits)
    assert list(result.pairs) == list(expected.pairs)
    for name, row in expected.layers.items():
        again = result.layers[name]
        assert (again.rank, again.error, again.sparsity) == (row.rank, row.error, row.sparsity)
        assert torch.equal(result.masks[name], expected.masks[name])


@pytest.mark.parametrize("inner", [SparseGPT, Wanda])
@pytest.mark.parametrize("target", [HALF, Target("2:4")], ids=lambda target: target.pattern)
def test_rounds_lower_the_error_and_keep_the_level(tiny_model, random_tokens, inner, target):
    tokens, errors = random_tokens(8, 32), {}
    for rounds in (1, 6):
        model, method = tiny_model("llama"), LowRank(inner(), rank=4, share=None, rounds=rounds)
        result = method.prune(context(model, tokens, target))
        check_reached(model, target, method, result, {})
        assert all(torch.equal(result.masks[linear.name], linear.weight != 0) for linear in model.linears)
        first = [row for name, row in result.layers.items() if ".layers.0." in name]  # what reaches it is the same
        errors[rounds] = sum(row.error for row in first)
        assert {row.refined is None for row in first} == {rounds == 1}
    assert errors[6] < 0.95 * errors[1]


@pytest.mark.parametrize("inner", [SparseGPT, Magnitude])
@pytest.mark.parametrize("target", [HALF, Target("2:4")], ids=lambda target: target.pattern)
def test_both_parts_together_lower_the_error_and_keep_the_level(tiny_model, random_tokens, inner, target):
    tokens, errors = random_tokens(8, 32), {}
    for fit in ("after", "joint"):
        model, method = tiny_model("llama"), LowRank(inner(), rank=4, share=None, fit=fit)
        result = method.prune(context(model, tokens, target))
        check_reached(model, target, method, result, {})
        for linear in model.linears:
            kept = linear.weight != 0
            assert torch.equal(result.masks[linear.name], kept)
            assert target.n_of_m is None or bool((kept.unflatten(1, (-1, 4)).sum(-1) == 2).all())
        first = [row for name, row in result.layers.items() if ".layers.0." in name]
        errors[fit] = [row.error for row in first]
        assert {row.refined for row in first} <= ({None} if fit == "after" else {0, 1})
    assert all(after <= before * (1 + 1e-4) for before, after in zip(errors["after"], errors["joint"], strict=True))
    assert sum(errors["joint"]) < 0.9 * sum(errors["after"])


def test_parts_found_together_leave_zeros_and_need_the_channels_as_they_are(tiny_model, random_tokens):
    model, zeros = tiny_model("llama"), {}
    for linear in model.linears:
        linear.weight[:, ::3] = 0
        zeros[linear.name] = linear.weight == 0
    result = LowRank(SparseGPT(), **RANK, fit="joint").prune(context(model, random_tokens(4, 16)))
    assert {row.refined for row in result.layers.values()} >= {1}
    assert not any(linear.weight[zeros[linear.name]].any() for linear in model.linears)
    LowRank(RIA(permute=True), fit="joint").check(HALF)
    with pytest.raises(BadInput, match=r"puts the channels in another order for 2:4, and .*fit=joint"):
        LowRank(RIA(permute=True), fit="joint").check(Target("2:4"))


def test_rounds_leave_zeros_and_need_an_inner_method_that_solves_layers(tiny_model, random_tokens):
    model, zeros = tiny_model("llama"), {}
    for linear in model.linears:
        linear.weight[:, ::3] = 0
        zeros[linear.name] = linear.weight == 0
    LowRank(SparseGPT(), **RANK, rounds=3).prune(context(model, random_tokens(4, 16)))
    assert not any(linear.weight[zeros[linear.name]].any() for linear in model.linears)
    with pytest.raises(BadInput, match=r"rounds=2 is more than LeastSquares can be asked for"):
        LowRank(LeastSquares(Wanda()), rounds=2).check(HALF)


def test_dense_targets_are_those_of_the_dense_model(tiny_model, random_tokens):
    """What the blocks before have lost is made up for, too: the model comes nearer to the dense one."""
    tokens = random_tokens(16, 32)
    dense = tiny_model("llama").hf(tokens).logits
    distances = {}
    for share in (0.0, 1.0):
        model = tiny_model("llama")
        order = {"sequential": "layer", "dense_targets": share}
        LowRank(Wanda(), rank=6, share=None, damping=0).prune(context(model, tokens, Target(level=0.3), **order))
        distances[share] = float((model.hf(tokens).logits - dense).square().sum())
    assert distances[1.0] < 0.97 * distances[0.0]


@pytest.mark.parametrize(
    ("method", "target", "message"),
    [
        (lambda: LowRank(Wanda(), rank=2), HALF, "two ways to say one thing"),
        (lambda: LowRank(Wanda(), share=None), HALF, "two ways to say one thing"),
        (lambda: LowRank(Wanda(), rank=0, share=None), HALF, r"rank=0 is not allowed"),
        (lambda: LowRank(Wanda(), share=1.0), HALF, r"share=1.0 is not allowed"),
        (lambda: LowRank(Magnitude(scope="model")), HALF, "chooses over the whole model at once"),
        (lambda: LowRank(LowRank(Wanda())), HALF, "use method=low_rank outermost"),
        (lambda: LeastSquares(LowRank(Wanda())), HALF, "use method=low_rank outermost"),
    ],
)
def test_what_cannot_be_is_refused(method, target, message):
    with pytest.raises(BadInput, match=message):
        method().check(target)


@pytest.mark.parametrize(
    ("settings", "target", "message"),
    [
        ({"rank": 8, "share": None}, HALF, r"keeps 512 of 1024 weights, .* rank 8 would take 512 parameters; lower"),
        ({"rank": 8, "share": None}, Target("2:4"), "keeps 512 of 1024 weights"),
        ({"share": 0.001}, HALF, "less than a low-rank part of rank 1 takes"),
    ],
)
def test_products_that_cost_too_much_or_are_none_are_refused_before_anything(tiny_model, settings, target, message):
    model = tiny_model("llama")
    with pytest.raises(BadInput, match=message):
        LowRank(SparseGPT(), **settings).check_model(model, target)


def test_merging_into_zeros_that_stay_is_refused(tiny_model):
    model = tiny_model("llama")
    next(model.linears).weight[0, 0] = 0
    method = LowRank(SparseGPT(), **RANK, merge=True)
    with pytest.raises(BadInput, match=r"sparsity\.keep_zeros=false"):
        method.check_model(model, HALF)
    method.check_model(model, Target(level=0.5, keep_zeros=False))
    LowRank(SparseGPT(), **RANK).check_model(model, HALF)


def test_channels_in_another_order_are_kept(tiny_model, random_tokens):
    pytest.importorskip("scipy")
    result = LowRank(RIA(permute=True), **RANK).prune(context(tiny_model("llama"), random_tokens(4, 16), Target("2:4")))
    assert result.channel_orders
    assert result.pairs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_ranks_in_its_type(tiny_model, random_tokens, dtype):
    model, tokens = tiny_model("llama", dtype), random_tokens(4, 16)
    result = LowRank(SparseGPT(), **RANK).prune(context(model, tokens))
    assert {pair.up.dtype for pair in result.pairs.values()} == {dtype}
    assert {parameter.dtype for parameter in model.hf.parameters()} == {dtype}
    assert torch.isfinite(model.hf(tokens).logits).all()
