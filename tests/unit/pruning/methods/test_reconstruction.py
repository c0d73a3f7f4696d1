import pytest
import torch

from prune_lab.errors import BadInput
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.dsnot import DSnoT
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.methods.reconstruction import Reconstruction
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.target import Target


def logits_error(model, dense, tokens) -> float:
    with torch.no_grad():
        return float((model.hf(tokens).logits - dense.hf(tokens).logits).square().mean())


def test_the_mask_is_the_inner_methods_and_the_model_comes_closer_to_the_dense_one(tiny_model, family, random_tokens):
    tokens = random_tokens(16, 32)
    inner, model = tiny_model(family), tiny_model(family)
    Magnitude().prune(PruningContext(inner, Target(level=0.6), Calibration(tokens)))
    masks = (
        Reconstruction(Magnitude(), epochs=6).prune(PruningContext(model, Target(level=0.6), Calibration(tokens))).masks
    )
    for linear, other in zip(model.linears, inner.linears, strict=True):
        assert torch.equal(masks[linear.name], other.weight != 0)
        assert torch.equal(linear.weight != 0, other.weight != 0)
    dense = tiny_model(family)
    assert logits_error(model, dense, tokens) < 0.9 * logits_error(inner, dense, tokens)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_trained_in_float32_and_stay_what_they_are(tiny_model, random_tokens, dtype):
    model = tiny_model("llama", dtype)
    masks = (
        Reconstruction(Wanda())
        .prune(PruningContext(model, Target(level=0.95), Calibration(random_tokens(6, 16))))
        .masks
    )
    for linear in model.linears:
        assert linear.weight.dtype == dtype
        assert not linear.weight[~masks[linear.name]].any()
        assert not linear.module.weight.requires_grad
        assert linear.module.weight.grad is None
    assert torch.isfinite(model.hf(random_tokens(1, 8)).logits).all()


def test_blocks_outside_the_range_are_left_alone(tiny_model, random_tokens):
    model, dense = tiny_model("opt"), tiny_model("opt")
    Reconstruction(Wanda()).prune(
        PruningContext(model, Target(level=0.5, layers=[1, 2]), Calibration(random_tokens(4, 16)))
    )
    for block, other in zip(model.blocks, dense.blocks, strict=True):
        for linear, was in zip(block.linears, other.linears, strict=True):
            assert torch.equal(linear.weight, was.weight) is (block.index != 1)


def test_a_method_that_cuts_the_whole_model_at_once_is_refused():
    with pytest.raises(BadInput, match="scope=layer"):
        Reconstruction(Magnitude("model")).check(Target(level=0.5))


@pytest.mark.parametrize("epochs", [0, 1.5, True])
def test_epochs_are_whole_numbers(epochs):
    with pytest.raises(BadInput, match=r"Reconstruction\.epochs="):
        Reconstruction(Wanda(), epochs=epochs)


def test_it_cannot_be_where_another_method_starts():
    """It needs the dense model's hidden states beside the pruned ones, which only its own iteration has."""
    with pytest.raises(BadInput, match=r"DSnoT\.inner=Reconstruction does not prune block by block"):
        DSnoT(Reconstruction(Wanda())).check(Target(level=0.5))
