"""Layers that are fitted to the outputs of the dense model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prune_lab.errors import BadInput
from prune_lab.models.load import Checkpoint
from prune_lab.models.model import PrunableModel
from prune_lab.pruning.calibration.blocks import iterate_blocks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.collect import collect
from prune_lab.pruning.calibration.statistics import Record
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.admm import ADMM
from prune_lab.pruning.methods.alps import ALPS
from prune_lab.pruning.methods.fitting import check_with_experts
from prune_lab.pruning.methods.least_squares import LeastSquares
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.methods.reconstruction import Reconstruction
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.methods.ziplm import ZipLM
from prune_lab.pruning.resume import FinishedBlocks
from prune_lab.pruning.solvers.dense_targets import correction
from prune_lab.pruning.target import Target
from prune_lab.run.stages.prune import Prune

HALF = Target(level=0.5)
METHODS: dict[str, tuple[Method, Target]] = {
    "sparsegpt": (SparseGPT(), HALF),
    "alps": (ALPS(), HALF),
    "admm": (ADMM(), HALF),
    "least_squares": (LeastSquares(Wanda()), HALF),
    "reconstruction": (Reconstruction(SparseGPT(), epochs=1), HALF),
    "ziplm": (ZipLM(), Target("neurons", 0.5)),
}


def read_by(model: PrunableModel, tokens: Tensor, index: int) -> dict[str, Tensor]:
    """What each linear layer of the block with the index reads in a model; one tensor for those that share it."""
    for block, inputs in iterate_blocks(model, Calibration(tokens, batch_size=2), index + 1):
        if block.index == index:
            found: dict[str, Tensor] = {}
            for shared in block.shared_inputs:
                record = collect(inputs, lambda: Record(torch.float32), [shared[0]])[shared[0].name].release()
                found |= {linear.name: record for linear in shared}
            return found
    raise AssertionError


def prune(
    model: PrunableModel, method: Method, target: Target, tokens: Tensor, dense_targets: float = 0.0
) -> dict[str, Tensor]:
    calibration = Calibration(tokens, batch_size=2, sequential="layer", dense_targets=dense_targets)
    method.prune(PruningContext(model, target, calibration))
    return {linear.name: linear.weight.clone() for linear in model.linears}


def test_the_correction_is_least_squares_from_dense_to_pruned_inputs():
    """Against explicit least squares on the stacked inputs, damping as further rows of data."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(60, 7, generator=generator, dtype=torch.float64)
    inputs = dense + 0.5 * torch.randn(60, 7, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 7, generator=generator, dtype=torch.float64)
    hessian, shift = inputs.T @ inputs / 60, (dense - inputs).T @ inputs / 60
    added = 0.1 * hessian.diagonal().mean()
    rows = torch.cat([inputs, (60 * added).sqrt() * torch.eye(7, dtype=torch.float64)])
    goal = torch.cat([dense @ weight.T, (60 * added).sqrt() * weight.T])
    expected = torch.linalg.lstsq(rows, goal).solution.T
    found = weight + weight @ correction(shift, hessian.clone(), 0.1)
    torch.testing.assert_close(found, expected)
    error = ((dense @ weight.T - inputs @ found.T) ** 2).sum()
    assert error < 0.8 * ((dense @ weight.T - inputs @ weight.T) ** 2).sum()


def test_inputs_that_were_never_active_are_not_corrected():
    inputs = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    shift = (torch.tensor([[2.0, 1.0], [3.0, 1.0]]) - inputs).T @ inputs / 2
    for damping in (0.0, 0.1):
        found = correction(shift, inputs.T @ inputs / 2, damping)
        assert bool(found.isfinite().all())
        assert not found[:, 1].any()


@pytest.mark.parametrize("family", ["opt", "llama", "gpt2"])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_without_sparsity_weights_minimise_the_distance_to_the_dense_outputs(
    tiny_model: Callable[..., PrunableModel],
    random_tokens: Callable[..., Tensor],
    family: str,
    share: float,
):
    """Block 0 loses half; block 1, of which nothing is to go, makes up for that as far as least squares can."""
    tokens, dense, model = random_tokens(24, 24), tiny_model(family), tiny_model(family)
    target = Target(level=0.5, budget={each.name: 0.0 for each in dense.blocks[1].linears}, layers=[0, 2])
    found = prune(model, SparseGPT(), target, tokens, dense_targets=share)
    x, moved = read_by(dense, tokens, 1), read_by(model, tokens, 1)
    for linear in dense.blocks[1].linears:
        own, inputs, weight = linear.weight, moved[linear.name].double(), found[linear.name].double()
        goal = ((1 - share) * inputs + share * x[linear.name].double()) @ own.double().T
        hessian = inputs.T @ inputs / len(inputs)
        hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
        right = goal.T @ inputs / len(inputs) + 0.01 * inputs.square().mean() * own.double()
        expected = torch.linalg.solve(hessian, right.T).T
        torch.testing.assert_close(weight, expected, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(weight.float(), own, atol=1e-3)
        error = ((goal - inputs @ weight.T) ** 2).sum()
        assert error < ((goal - inputs @ own.double().T) ** 2).sum()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_that_fits_comes_closer_to_the_dense_model(
    tiny_model: Callable[..., PrunableModel], random_tokens: Callable[..., Tensor], name: str
):
    """The outputs of the last block, on the text that was fitted to."""
    method, target = METHODS[name]
    tokens, errors = random_tokens(24, 24), {}
    assert method.dense_targets_conflict is None
    dense = tiny_model("llama")
    with torch.no_grad():
        goal = dense.hf.base_model(tokens).last_hidden_state
    for share in (0.0, 1.0):
        model = tiny_model("llama")
        found = prune(model, method, target, tokens, dense_targets=share)
        with torch.no_grad():
            errors[share] = float((model.hf.base_model(tokens).last_hidden_state - goal).square().mean())
        if target is HALF:
            for weight in found.values():
                assert int((weight == 0).sum()) == weight.numel() // 2
    assert errors[1.0] < 0.98 * errors[0.0]


@pytest.mark.parametrize("name", ["sparsegpt", "alps", "admm", "least_squares"])
def test_the_first_layers_read_what_the_dense_model_reads(
    tiny_model: Callable[..., PrunableModel], random_tokens: Callable[..., Tensor], name: str
):
    method, target = METHODS[name]
    tokens, one, other = random_tokens(6, 24), tiny_model("opt"), tiny_model("opt")
    first, second = prune(one, method, target, tokens), prune(other, method, target, tokens, dense_targets=1.0)
    own = {linear.name for linear in one.blocks[0].shared_inputs[0]}
    same = {name for name in first if torch.equal(first[name], second[name])}
    assert same == own


def test_zeros_stay_that_were_there_before(
    tiny_model: Callable[..., PrunableModel], random_tokens: Callable[..., Tensor]
):
    for method in (SparseGPT(), ALPS(), ADMM()):
        model = tiny_model("llama")
        for linear in model.linears:
            linear.weight[::3, ::2] = 0
        before = {linear.name: linear.weight == 0 for linear in model.linears}
        found = prune(model, method, Target(level=0.5, keep_zeros=True), random_tokens(8, 24), dense_targets=1.0)
        for name, weight in found.items():
            assert not weight[before[name]].any()
            assert int((weight == 0).sum()) == weight.numel() // 2


def test_what_was_pruned_before_an_interruption_is_walked_dense(
    tiny_model: Callable[..., PrunableModel], random_tokens: Callable[..., Tensor], tmp_path: Path
):
    calibration = Calibration(random_tokens(6, 24), batch_size=2, sequential="layer", dense_targets=1.0)

    class Stop(Exception):
        pass

    class Stopping(SparseGPT):
        def prune_block(self, pruning):
            if pruning.block.index == 1:
                raise Stop
            super().prune_block(pruning)

    def context(model: PrunableModel) -> PruningContext:
        return PruningContext(model, HALF, calibration, finished_blocks=FinishedBlocks(tmp_path, "same", every=0))

    whole = tiny_model("llama")
    SparseGPT().prune(PruningContext(whole, HALF, calibration))
    with pytest.raises(Stop):
        Stopping().prune(context(tiny_model("llama")))
    again = tiny_model("llama")
    SparseGPT().prune(context(again))
    for one, other in zip(whole.linears, again.linears, strict=True):
        assert torch.equal(one.weight, other.weight)


def test_models_that_stay_in_their_files(model_folder: Callable[..., Path], random_tokens: Callable[..., Tensor]):
    folder = str(model_folder("llama"))
    found = [
        prune(Checkpoint(folder, stream=stream).load(), SparseGPT(), HALF, random_tokens(6, 24), dense_targets=1.0)
        for stream in (False, True)
    ]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("method", [Wanda(), ZipLM(bias=True), Reconstruction(Wanda())])
def test_methods_say_why_they_cannot(method: Method):
    assert "dense_targets=0" in str(method.dense_targets_conflict)


def test_the_stage_refuses_them_before_anything_is_read():
    for method, wanted in ((Wanda(), "method=sparsegpt"), (ZipLM(bias=True), "ZipLM.bias=false")):
        stage = Prune(
            method=method,
            target=Target("neurons" if isinstance(method, ZipLM) else "unstructured", 0.5),
            sequential="layer",
            dense_targets=0.5,
        )
        with pytest.raises(BadInput, match=rf"dense_targets=0\.5: method {type(method).__name__} .*{wanted}"):
            stage.prepare()
        stage.dense_targets = 0.0
        stage.prepare()


@pytest.mark.parametrize("share", [-0.1, 1.5, True])
def test_shares_outside_zero_to_one_are_refused(random_tokens: Callable[..., Tensor], share: float):
    with pytest.raises(BadInput, match="dense_targets"):
        Calibration(random_tokens(2, 8), sequential="layer", dense_targets=share)


def test_inputs_of_the_dense_model_leave_nothing_to_make_up_for(random_tokens: Callable[..., Tensor]):
    with pytest.raises(BadInput, match="propagate=pruned or dense_targets=0"):
        Calibration(random_tokens(2, 8), propagate="dense", sequential="layer", dense_targets=0.5)


def test_layers_of_a_block_do_not_make_up_for_the_same_loss_at_once(random_tokens: Callable[..., Tensor]):
    with pytest.raises(BadInput, match="needs sequential=layer"):
        Calibration(random_tokens(2, 8), dense_targets=0.5)


def test_models_with_experts_are_refused(tiny_model: Callable[..., PrunableModel]):
    model = tiny_model("mixtral")
    check_with_experts(SparseGPT(), model, 0.0)
    with pytest.raises(BadInput, match=r"dense_targets=0\.5: .* has mixtures of experts"):
        check_with_experts(SparseGPT(), model, 0.5)
