"""Rotations of a model that leave what it computes as it is."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import prune_lab
from prune_lab.models.residual import (
    fold_norms,
    match_rotations,
    rotate_stream,
    rotate_values,
    stream_of,
    why_stream_stays,
)
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


def of_stream(model, seed=2):
    width = model.hf.config.hidden_size
    if stream_of(model).mean_free:
        return keeping_mean(drawn(width - 1, width - 1, seed=seed))
    return drawn(width, width, seed=seed)


def rotate_all(model):
    added = fold_norms(model)
    for block in model.blocks:
        attention = block.attention
        rotate_values(block, drawn(attention.kv_heads, attention.head_dim, attention.head_dim, seed=block.index))
    assert rotate_stream(model, [of_stream(model)] * len(model.blocks)) == 0
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


def rotate_each(model, *, ends, like=None):
    """Each block in its own way, or in that of another."""
    fold_norms(model, head=ends)
    rotations = [of_stream(model, seed=index) for index in range(len(model.blocks))]
    for index, other in (like or {}).items():
        rotations[index] = rotations[other]
    return rotate_stream(model, rotations, ends=ends)


@pytest.mark.parametrize("ends", [True, False], ids=["ends taken in", "ends stay"])
@pytest.mark.parametrize("family", ROTATED)
def test_blocks_rotated_each_in_its_own_way_compute_the_same_and_so_does_their_folder(
    family, ends, tmp_path, random_tokens
):
    model, tokens = lively(family), random_tokens(3, 20)
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    expected, tied = model.hf(tokens).logits, is_tied(model)
    blocks, parameters = len(model.blocks), sum(each.numel() for each in model.hf.parameters())
    added = rotate_each(model, ends=ends)
    assert added == 32 * 32 * (blocks - 1 if ends else blocks + 1)
    untied = 64 * 32 if ends and tied else 0
    assert sum(each.numel() for each in model.hf.parameters()) == parameters + added + untied
    assert model.hf.config.rotations_before == (list(range(1, blocks)) if ends else list(range(blocks + 1)))
    assert is_tied(model) == (tied and not ends)
    assert_same_logits(model.hf, expected, tokens)
    after = model.hf.state_dict()
    outside = [name for name in before if not any(linear.name in name for linear in model.linears)]
    stay = [name for name in outside if name.startswith(("lm_head", "embed_out")) or "emb" in name or "wpe" in name]
    assert stay and all(torch.equal(before[name], after[name]) != ends for name in stay)
    model.hf.save_pretrained(tmp_path)
    for reloaded in (AutoModelForCausalLM.from_pretrained(tmp_path).eval(), prune_lab.load(tmp_path).hf):
        assert type(reloaded).__name__ == type(model.hf).__name__ == f"PruneLab{type(model.hf).__base__.__name__}"
        assert_same_logits(reloaded, expected, tokens)
    cached, plain = (
        reloaded.generate(tokens[:1], max_new_tokens=4, do_sample=False, use_cache=each, pad_token_id=0)
        for each in (True, False)
    )
    assert torch.equal(cached, plain)


def test_nothing_is_put_between_blocks_of_one_rotation(random_tokens):
    model, tokens = lively("llama"), random_tokens(3, 20)
    expected = model.hf(tokens).logits
    assert rotate_each(model, ends=True, like={1: 0}) == 32 * 32
    assert model.hf.config.rotations_before == [2]
    assert_same_logits(model.hf, expected, tokens)
    assert "rotate it between the blocks already" in why_stream_stays(model)


def test_one_rotation_of_another_type_is_one_too():
    model = lively("llama")
    fold_norms(model)
    assert rotate_stream(model, [drawn(32, 32).float()] * 3) == 0
    assert getattr(model.hf.config, "rotations_before", None) is None


def test_a_wrong_matrix_between_blocks_would_be_seen(random_tokens):
    """The check of the check."""
    model, tokens = lively("llama"), random_tokens(3, 20)
    expected = model.hf(tokens).logits
    rotate_each(model, ends=True)
    weight = model.blocks[1].module.rotation.weight
    weight.data = weight.data.T.contiguous()
    assert float((model.hf(tokens).logits - expected).abs().max()) > 1e-2


def test_matrices_are_put_between_blocks_to_match_saved_weights(tmp_path, random_tokens):
    saved, model, tokens = lively("gpt2"), lively("gpt2"), random_tokens(3, 20)
    rotate_each(saved, ends=False)
    state = saved.hf.state_dict()
    match_rotations(model, [name for name in state if "rotation" not in name])
    assert getattr(model.hf.config, "rotations_before", None) is None
    match_rotations(model, set(state))
    assert model.hf.config.rotations_before == saved.hf.config.rotations_before
    assert_same_logits(model.hf, lively("gpt2").hf(tokens).logits, tokens)  # identities
    model.hf.load_state_dict(state)
    assert torch.equal(model.hf(tokens).logits, saved.hf(tokens).logits)
    assert model.fingerprint() == saved.fingerprint()


@pytest.mark.parametrize("places", [[5], [-1], [1, 0], [1, 1]])
def test_places_that_cannot_be_are_refused(tmp_path, places):
    model = lively("llama")
    rotate_each(model, ends=True)
    model.hf.config.rotations_before = places
    with pytest.raises(ValueError, match="rotations_before"):
        type(model.hf)(model.hf.config)


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
    rotate_stream(model, [drawn(32, 32)] * len(model.blocks))
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
