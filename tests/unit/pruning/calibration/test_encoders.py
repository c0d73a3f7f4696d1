"""Encoders read padded texts both ways: the walk is exact on them, and no statistic sees padding."""

import pytest
import torch

from prune_lab.data.samples import Samples
from prune_lab.errors import BadInput
from prune_lab.pruning.calibration.blocks import iterate_blocks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.collect import collect
from prune_lab.pruning.calibration.output_error import OutputErrors
from prune_lab.pruning.calibration.statistics import Hessian, InputNorm

LENGTHS = [24, 24, 9, 17, 5]  # of the first batch none is padded


def padded(random_tokens, pad: int = 1, lengths=LENGTHS) -> Calibration:
    """Texts of several lengths, padded to the longest; the walk takes two at a time."""
    tokens = random_tokens(len(lengths), max(lengths)).clamp_min(2)
    real = Samples(tokens, torch.tensor(lengths)).real
    return Calibration(tokens.masked_fill(~real, pad), batch_size=2, real=real)


def own_states(model, calibration):
    with torch.no_grad():
        return [
            model.hf(**calibration.inputs(batch), output_hidden_states=True).hidden_states
            for batch in calibration.batches()
        ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_walk_equals_the_models_own_hidden_states_exactly(tiny_model, encoder_family, random_tokens, attention):
    model = tiny_model(encoder_family)
    model.hf.set_attn_implementation(attention)
    calibration = padded(random_tokens)
    own, seen = own_states(model, calibration), 0
    for block, inputs in iterate_blocks(model, calibration):
        assert torch.equal(inputs.hidden, torch.cat([states[block.index] for states in own])), f"block {block.index}"
        seen += 1
    assert seen == len(model.blocks) == 3


def test_the_walk_gives_the_types_of_tokens(tiny_model, random_tokens):
    model, calibration = tiny_model("bert"), padded(random_tokens)
    calibration.types = (torch.arange(24) > 6).long().expand(5, -1)
    own = own_states(model, calibration)
    first = next(iter(iterate_blocks(model, calibration)))[1].hidden.clone()
    assert torch.equal(first, torch.cat([states[0] for states in own]))
    calibration.types = None
    assert not torch.equal(first, next(iter(iterate_blocks(model, calibration)))[1].hidden)


def statistics_of(model, calibration, kind):
    found = {}
    for _, inputs in iterate_blocks(model, calibration):
        found |= {name: each.value.clone() for name, each in collect(inputs, kind).items()}
    return found


@pytest.mark.parametrize("kind", [InputNorm, Hessian])
def test_padding_has_no_influence_on_statistics(tiny_model, encoder_family, random_tokens, kind):
    model = tiny_model(encoder_family)
    calibration = padded(random_tokens)
    wider = Calibration(
        torch.nn.functional.pad(calibration.tokens, (0, 9), value=1),
        batch_size=2,
        real=torch.nn.functional.pad(calibration.real, (0, 9)),
    )
    narrow, wide = (statistics_of(model, each, kind) for each in (calibration, wider))
    for name in narrow:
        torch.testing.assert_close(narrow[name], wide[name], rtol=1e-4, atol=1e-4)


def test_statistics_that_saw_padding_would_be_others(tiny_model, random_tokens, monkeypatch):
    model, calibration = tiny_model("bert"), padded(random_tokens)
    right = statistics_of(model, calibration, InputNorm)
    monkeypatch.setattr(Calibration, "real_rows", lambda _self, _batch, states: states.flatten(0, -2))
    wrong = statistics_of(model, calibration, InputNorm)
    assert all(not torch.allclose(right[name], wrong[name], rtol=1e-2) for name in right)


def test_a_statistic_of_padded_texts_is_that_of_each_text_alone(tiny_model, encoder_family, random_tokens):
    model, calibration = tiny_model(encoder_family), padded(random_tokens)
    found = statistics_of(model, calibration, Hessian)
    total, tokens = {}, 0
    for row, length in enumerate(LENGTHS):
        alone = Calibration(calibration.tokens[row : row + 1, :length], batch_size=1)
        for name, value in statistics_of(model, alone, Hessian).items():
            total[name] = total.get(name, 0) + length * value
        tokens += length
    for name in found:
        torch.testing.assert_close(found[name], total[name] / tokens, rtol=1e-4, atol=1e-4)


def test_the_error_of_a_block_is_that_of_texts_without_their_padding(tiny_model, random_tokens):
    model = tiny_model("bert")
    calibration = padded(random_tokens, lengths=[12, 4])
    for _, inputs in iterate_blocks(model, calibration, blocks=1):
        errors = OutputErrors(inputs)
        errors.keep_dense_output()
        output = inputs.first_output()
        noise = torch.zeros_like(output).masked_fill(~calibration.real[:, :, None], 5.0)
        assert errors.of_block(output + noise) == 0
        errors.keep_dense_output()
        assert errors.of_block(output + 1) > 0


def test_a_share_and_a_first_batch_have_their_own_padding(random_tokens):
    calibration = padded(random_tokens)
    assert calibration.first_batch().real.shape == (2, 24)
    assert torch.equal(calibration.inputs(slice(2, 4))["attention_mask"].sum(1), torch.tensor([9, 17]))


def test_blocks_of_an_encoder_stay(tiny_model, encoder_family):
    from prune_lab.pruning.target import Target

    with pytest.raises(BadInput, match="normalises the residual stream in every block"):
        Target(level=0.5, pattern="blocks").check(tiny_model(encoder_family))
