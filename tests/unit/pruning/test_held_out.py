"""What refines is judged by calibration text that it is not fitted to."""

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from prune_lab.pruning.block_pruning import BlockPruning
from prune_lab.pruning.calibration.blocks import iterate_blocks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.held_out import HeldOut, SplitStatistic
from prune_lab.pruning.calibration.statistics import Hessian, InputNorm
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.held_out import BlockJudge
from prune_lab.pruning.methods import reconstruction
from prune_lab.pruning.methods.blockwise import BlockMethod
from prune_lab.pruning.methods.dsnot import DSnoT
from prune_lab.pruning.methods.least_squares import LeastSquares
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.methods.reconstruction import Reconstruction
from prune_lab.pruning.methods.refining import RefiningMethod
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.methods.sparsellm import SparseLLM
from prune_lab.pruning.methods.sparseswaps import SparseSwaps
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.result import PruningResult
from prune_lab.pruning.solvers import adam_refine
from prune_lab.pruning.solvers.best import best_of
from prune_lab.pruning.target import Target

TARGET = Target(level=0.6, layers=[0, 1])


@pytest.mark.parametrize(
    ("samples", "share", "count"), [(16, 0.125, 2), (15, 0.125, 1), (2, 0.125, 1), (3, 0.9, 2), (4, 0.0, 0)]
)
def test_the_last_samples_are_held_out_but_never_all(random_tokens, samples, share, count):
    held = HeldOut.of(Calibration(random_tokens(samples, 8)), share)
    expected = torch.zeros(samples, 8, dtype=torch.bool)
    expected[samples - count :] = True
    assert torch.equal(held.tokens, expected)
    assert torch.equal(held.fitted, ~expected)
    assert bool(held) is (count > 0)
    assert held.boundary == (samples - count if count else None)


@pytest.mark.parametrize(("seqlen", "count"), [(16, 2), (5, 1), (1, 0)])
def test_of_one_sample_the_last_positions_are_held_out(random_tokens, seqlen, count):
    held = HeldOut.of(Calibration(random_tokens(1, seqlen)), 0.125)
    assert held.tokens.tolist() == [[False] * (seqlen - count) + [True] * count]
    assert held.boundary is None


def test_no_batch_reaches_across_the_boundary(random_tokens):
    calibration = Calibration(random_tokens(7, 8), batch_size=3, boundary=5)
    assert calibration.batches() == [slice(0, 3), slice(3, 5), slice(5, 7)]
    assert calibration.first_batch().batches() == [slice(0, 3)]


@pytest.mark.parametrize("samples", [6, 1])
def test_a_statistic_is_split_in_one_pass(random_tokens, samples):
    calibration = Calibration(random_tokens(samples, 8), batch_size=4)
    held, x = HeldOut.of(calibration, 0.4), torch.randn(samples, 8, 5)
    split = SplitStatistic(InputNorm, held, calibration)
    for batch in calibration.batches():
        split.update(x[batch].flatten(0, 1))
    torch.testing.assert_close(split.fitted.value, x[held.fitted].square().sum(0).sqrt())
    dense, weight = torch.randn(3, 5), torch.randn(3, 5)
    expected = ((x[held.tokens] @ (dense - weight).T) ** 2).mean(0).sum()
    assert split.judge()(dense, weight) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("errors", "known", "place"),
    [([3, 2, 1], None, 2), ([3, 1, 2], None, 1), ([1, 2, 1], None, 0), ([3, 2], 1, 0), ([1, float("nan")], None, 0)],
)
def test_the_candidate_with_the_least_error_is_taken(errors, known, place):
    assert best_of(0, range(1, len(errors)), errors.__getitem__, known) == (place, place)


@dataclass
class Spoiling(RefiningMethod):
    """Makes every weight three times as large, which is worse wherever there is an error worth the name."""

    inner: BlockMethod
    statistic: ClassVar = Hessian

    def refine(self, dense: Tensor, pruned: Tensor, prepared: object, target: Target) -> Tensor:
        return 3 * pruned


@pytest.mark.parametrize("sequential", ["block", "layer"])
@pytest.mark.parametrize("samples", [4, 1])
def test_what_a_method_spoils_is_refused_and_what_nothing_judges_is_kept(
    tiny_model, family, random_tokens, sequential, samples
):
    tokens = random_tokens(samples, 16)
    calibration = Calibration(tokens, sequential=sequential)
    fitted = tokens[:-1] if samples > 1 else tokens[:, :-2]
    inner, refused, kept = (tiny_model(family) for _ in range(3))
    Wanda().prune(PruningContext(inner, TARGET, Calibration(fitted, sequential=sequential)))
    rows = Spoiling(Wanda()).prune(PruningContext(refused, TARGET, calibration)).layers.values()
    assert {row.refined for row in rows} == {0}
    rows = Spoiling(Wanda(), held_out=0).prune(PruningContext(kept, TARGET, calibration)).layers.values()
    assert {row.refined for row in rows} == {1}
    for first, second, third in zip(*(model.blocks[0].linears for model in (inner, refused, kept)), strict=True):
        assert torch.equal(first.weight, second.weight)
        assert not torch.equal(first.weight, third.weight)


@pytest.mark.parametrize("better", [True, False])
def test_a_block_is_kept_where_its_output_is_no_worse(tiny_model, family, random_tokens, better):
    """However much better each of its weights is by itself."""
    model, result = tiny_model(family), PruningResult()
    block, inputs = next(iterate_blocks(model, Calibration(random_tokens(4, 16))))
    dense = {linear: linear.weight.clone() for linear in block.linears}
    pruning = BlockPruning(inputs, TARGET, result)
    judge = BlockJudge(pruning, HeldOut.of(inputs.calibration, 0.25))
    Magnitude().prune_block(pruning)
    before = {linear: linear.weight.clone() for linear in block.linears}
    judge.begin()
    for linear, weight in dense.items():
        pruning.write(linear, (weight + before[linear]) / 2 if better else before[linear] - weight, refined=1)
    after = {linear: linear.weight.clone() for linear in block.linears}
    judge.settle()
    for linear in block.linears:
        assert torch.equal(linear.weight, (after if better else before)[linear])
    assert {row.refined for row in result.layers.values()} == {int(better)}


REFINING = {
    "least_squares": (LeastSquares(Magnitude()), Magnitude()),
    "dsnot": (DSnoT(Wanda()), Wanda()),
    "sparseswaps": (SparseSwaps(Wanda()), Wanda()),
    "reconstruction": (Reconstruction(Magnitude(), epochs=3), Magnitude()),
    "sparsellm": (SparseLLM(), SparseGPT()),
}


@pytest.mark.parametrize(("method", "inner"), REFINING.values(), ids=REFINING)
def test_no_block_is_worse_than_what_it_started_from_on_text_held_out(tiny_model, family, random_tokens, method, inner):
    """Random tokens, of which nothing can be learned: what fits some of them better often fits others worse."""
    calibration = Calibration(random_tokens(5, 16))
    outputs = []
    for pruned, samples in ((None, 0), (inner, 4), (method, 5)):
        model = tiny_model(family)
        if pruned is not None:
            pruned.prune(PruningContext(model, TARGET, Calibration(calibration.tokens[:samples])))
        _, inputs = next(iterate_blocks(model, calibration))
        outputs.append(HeldOut.of(calibration, 0.125).outputs(inputs))
    first, last = (float((output - outputs[0]).square().sum(dtype=torch.float64)) for output in outputs[1:])
    assert last <= first * (1 + 1e-6)


@pytest.mark.parametrize(
    "method",
    [LeastSquares(SparseGPT()), SparseSwaps(Wanda()), Reconstruction(SparseGPT())],
    ids=lambda method: type(method).__name__,
)
def test_nothing_is_fitted_to_the_text_that_judges(tiny_model, random_tokens, method):
    """Another text there changes only which weights are kept."""
    tokens, found = random_tokens(9, 16), []
    for last in (tokens[8], tokens[8].flip(0)):
        model = tiny_model("llama")
        calibration = Calibration(torch.cat([tokens[:8], last[None]]))
        rows = method.prune(PruningContext(model, TARGET, calibration)).layers
        found.append((model, rows))
    both = [
        (linear.weight, other.weight)
        for linear, other in zip(*(model.blocks[0].linears for model, _ in found), strict=True)
        if found[0][1][linear.name].refined == found[1][1][linear.name].refined != 0
    ]
    assert both
    assert all(torch.equal(first, second) for first, second in both)


def test_epochs_that_harm_are_not_kept(tiny_model, random_tokens, monkeypatch):
    monkeypatch.setattr(reconstruction, "_STEP", 30.0)
    monkeypatch.setitem(adam_refine.adam_epochs.__kwdefaults__, "share", 30.0)
    inner, model, context = tiny_model("llama"), tiny_model("llama"), Calibration(random_tokens(8, 16))
    Magnitude().prune(PruningContext(inner, Target(level=0.5), context))
    rows = Reconstruction(Magnitude()).prune(PruningContext(model, Target(level=0.5), context)).layers
    assert Counter(row.refined for row in rows.values()) == {0: len(rows)}
    for first, second in zip(model.linears, inner.linears, strict=True):
        assert torch.equal(first.weight, second.weight)
