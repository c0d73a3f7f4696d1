import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from prune_lab.errors import BadInput
from prune_lab.models.model import PrunableModel
from prune_lab.pruning.block_pruning import BlockPruning
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods import reconstruction
from prune_lab.pruning.methods.dsnot import DSnoT
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.methods.reconstruction import Goals, Reconstruction
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


def wide_model(dtype: torch.dtype) -> PrunableModel:
    """One block of the width of a model with seven billion weights, and few weights: narrow attention and network."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=4000,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    hf = AutoModelForCausalLM.from_config(config)
    hf.model.embed_tokens.weight.data.mul_(50)
    return PrunableModel(hf.to(dtype), name="wide")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_do_not_vanish_at_the_width_of_real_models(random_tokens, monkeypatch, dtype):
    gradients, output = [], reconstruction._output

    def watched(*args, **keys):
        found = output(*args, **keys)
        if found.requires_grad:
            found.register_hook(gradients.append)
        return found

    monkeypatch.setattr(reconstruction, "_output", watched)
    models = [wide_model(dtype), wide_model(dtype)]
    for model, method in zip(models, (Wanda(), Reconstruction(Wanda())), strict=True):
        method.prune(PruningContext(model, Target(level=0.5), Calibration(random_tokens(8, 64))))
    assert max(float((gradient == 0).float().mean()) for gradient in gradients) < 0.01
    for first, trained in zip(*(model.blocks[0].linears[:4] for model in models), strict=True):
        kept = first.weight != 0
        assert float((trained.weight != first.weight)[kept].float().mean()) > 0.9, trained.name


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_trained_in_float32_and_stay_what_they_are(tiny_model, random_tokens, dtype, family):
    model = tiny_model(family, dtype)
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


def test_the_goals_are_the_dense_models_activations(tiny_model, random_tokens, monkeypatch):
    """Not those that the pruned blocks before would give there."""
    model, dense, tokens, goals = tiny_model("llama"), tiny_model("llama"), random_tokens(6, 16), []
    monkeypatch.setattr(Reconstruction, "_prune_block", lambda self, pruning, goals: seen(self, pruning, goals))

    def seen(method: Reconstruction, pruning: BlockPruning, found: Goals) -> None:
        goals.extend((found.attention, found.network, found.block))
        method.inner.prune_block(pruning)

    Reconstruction(Magnitude()).prune(PruningContext(model, Target(level=0.9), Calibration(tokens)))
    expected = []
    for layer in dense.hf.model.layers:
        for module in (layer.self_attn.o_proj, layer.mlp.down_proj):
            module.register_forward_hook(lambda _module, _args, output: expected.append(output.detach()))
        layer.register_forward_hook(lambda _module, _args, output: expected.append(output[-1].detach()))  # held out
    dense.hf(tokens)
    torch.testing.assert_close(goals, expected)


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


def test_goals_are_the_dense_models_behind_blocks_that_are_not_pruned_too(tiny_model, random_tokens):
    seen, expected, tokens, dense = [], [], random_tokens(3, 16), tiny_model("opt")

    class Watching(Reconstruction):
        def _prune_block(self, pruning, goals):
            seen.extend((goals.attention, goals.network))
            super()._prune_block(pruning, goals)

    target = Target(level=0.7, layers=[1, 3])
    Watching(Magnitude(), epochs=1).prune(PruningContext(tiny_model("opt"), target, Calibration(tokens)))
    for block in filter(target.includes, dense.blocks):
        for linear in (block.shared_inputs[1][0], block.mlp.down):
            linear.module.register_forward_hook(lambda _module, _inputs, output: expected.append(output.detach()))
    dense.hf(tokens)
    for mine, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(mine, theirs.view_as(mine), rtol=1e-4, atol=1e-4)
