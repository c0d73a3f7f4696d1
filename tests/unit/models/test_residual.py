"""Rotations of a model that leave what it computes as it is."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from prune_lab.models.residual import fold_norms, rotate_stream, rotate_values, stream_of, why_stream_stays
from prune_lab.models.tying import is_tied, match_head, untie
from prune_lab.pruning.solvers.rotation import keeping_mean, orthogonal
from tests.conftest import FAMILY_NAMES, build_tiny_model

ROTATED = [family for family in FAMILY_NAMES if family != "gemma3_text"]


def lively(family, **settings):
    """A tiny model whose norms and biases are not all ones and zeros."""
    model = build_tiny_model(family, **settings)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.hf.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def drawn(*shape, seed=2):
    return orthogonal(torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))


def of_stream(model):
    width = model.hf.config.hidden_size
    return keeping_mean(drawn(width - 1, width - 1)) if stream_of(model).mean_free else drawn(width, width)


def rotate_all(model):
    added = fold_norms(model)
    for block in model.blocks:
        attention = block.attention
        rotate_values(block, drawn(attention.kv_heads, attention.head_dim, attention.head_dim, seed=block.index))
    rotate_stream(model, of_stream(model))
    return added


def assert_same_logits(model, expected, tokens):
    got, expected = model(tokens).logits.detach(), expected.detach()
    assert float((got - expected).abs().max()) < 1e-4
    assert float(expected.abs().max()) > 0.1


@pytest.mark.parametrize("family", ROTATED)
def test_a_rotated_model_computes_the_same_and_so_does_its_folder(family, tmp_path, random_tokens):
    model, tokens = lively(family), random_tokens(3, 20)
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    expected, tied = model.hf(tokens).logits, is_tied(model)
    assert why_stream_stays(model) is None
    added = rotate_all(model)
    assert added == (64 * 32 if tied else 0)
    assert not is_tied(model)
    assert_same_logits(model.hf, expected, tokens)
    for linear in model.linears:
        assert (
            float((before[f"{linear.name}.weight"] - model.hf.state_dict()[f"{linear.name}.weight"]).abs().max()) > 0.01
        )
    model.hf.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(reloaded) is type(model.hf)
    assert_same_logits(reloaded, expected, tokens)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_values_can_be_rotated_in_every_family(family, random_tokens):
    model, tokens = lively(family), random_tokens(3, 20)
    expected = model.hf(tokens).logits
    for block in model.blocks:
        attention = block.attention
        before = attention.projections[0].weight.clone(), attention.out.weight.clone()
        rotate_values(block, drawn(attention.kv_heads, attention.head_dim, attention.head_dim))
        assert not torch.allclose(before[1], attention.out.weight, atol=1e-3)
        if len(attention.projections) == 3:
            assert torch.equal(before[0], attention.projections[0].weight)
    assert_same_logits(model.hf, expected, tokens)


def test_a_tied_head_stays_tied_where_the_last_scale_is_constant(random_tokens):
    model, tokens = lively("gpt2"), random_tokens(3, 20)
    model.hf.transformer.ln_f.weight.data.fill_(1.7)
    expected = model.hf(tokens).logits
    assert rotate_all(model) == 0
    assert is_tied(model)
    assert_same_logits(model.hf, expected, tokens)


def test_a_bias_of_a_norm_is_divided_where_nothing_else_can_take_it(random_tokens):
    model, tokens = lively("gpt_neo"), random_tokens(3, 20)
    expected = model.hf(tokens).logits
    fold_norms(model)
    first, second = model.hf.transformer.h[0].ln_1, model.hf.transformer.h[0].ln_2
    assert bool((first.weight == 1).all())
    assert float(first.bias.abs().max()) > 0
    assert float(second.bias.abs().max()) == 0
    assert_same_logits(model.hf, expected, tokens)


def test_a_rotation_that_moves_the_mean_would_not_do():
    """The check of the check: LayerNorm needs the direction of ones to stay."""
    model, tokens = lively("gpt2"), torch.randint(0, 64, (3, 20), generator=torch.Generator().manual_seed(0))
    expected = model.hf(tokens).logits
    fold_norms(model)
    rotate_stream(model, drawn(32, 32))
    assert float((model.hf(tokens).logits - expected).abs().max()) > 1e-2


def test_post_norms_and_odd_opts_say_why_they_stay():
    assert "post-norms" in why_stream_stays(build_tiny_model("gemma3_text"))
    model = build_tiny_model("opt")
    model.hf.config.do_layer_norm_before = False
    assert "do_layer_norm_before=false" in why_stream_stays(model)
    model.hf.config.do_layer_norm_before = True
    model.hf.config.word_embed_proj_dim = 16
    assert "word_embed_proj_dim" in why_stream_stays(model)
    model = lively("gpt_neo")
    model.hf.transformer.h[1].ln_1.weight.data[3] = 0
    assert "scale of zero" in why_stream_stays(model)


def test_a_head_is_untied_to_match_saved_weights():
    model = build_tiny_model("opt")
    names = [name for name, _ in model.hf.named_parameters(remove_duplicate=False)]
    match_head(model, [name for name in names if name != "lm_head.weight"])
    assert is_tied(model)
    match_head(model, names)
    assert not is_tied(model)
    assert model.hf.config.tie_word_embeddings is False
    assert torch.equal(model.hf.lm_head.weight, model.hf.get_input_embeddings().weight)
    assert untie(model) == 0
