"""Blocks get the inputs that the model's own forward pass gives them."""

import pytest
import torch

from prune_lab.errors import BadInput, RunFailed
from prune_lab.pruning.calibration import blocks
from prune_lab.pruning.calibration.blocks import iterate_blocks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.collect import collect
from prune_lab.pruning.calibration.statistics import Hessian


def own_forward(model, calibration, **kwargs):
    """The model's own forward passes, with the batches of the walk."""
    with model.placed(calibration.device) as hf, torch.no_grad():
        return [hf(calibration.tokens[batch], use_cache=False, **kwargs) for batch in calibration.batches()]


def test_the_walk_equals_the_models_own_hidden_states_exactly(tiny_model, family, random_tokens):
    model = tiny_model(family)
    calibration = Calibration(random_tokens(5, 24), batch_size=2)
    batches = [out.hidden_states for out in own_forward(model, calibration, output_hidden_states=True)]
    seen = 0
    for block, inputs in iterate_blocks(model, calibration):
        expected = torch.cat([states[block.index] for states in batches])
        assert torch.equal(inputs.hidden, expected), f"block {block.index}"
        seen += 1
    assert seen == len(model.blocks) == 3


def test_the_next_block_sees_this_one_as_it_was_left(tiny_model, family, random_tokens):
    model = tiny_model(family)
    calibration = Calibration(random_tokens(3, 24), batch_size=2)
    walked = []
    for block, inputs in iterate_blocks(model, calibration):
        walked.append(inputs.hidden.clone())
        for linear in block.linears:
            linear.write(linear.weight * (torch.arange(linear.shape[1]) % 2))  # every other input is cut
    batches = [out.hidden_states for out in own_forward(model, calibration, output_hidden_states=True)]
    for index, hidden in enumerate(walked):
        assert torch.equal(hidden, torch.cat([states[index] for states in batches]))
    assert not torch.equal(walked[1], walked[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_walk_is_exact_in_half_precision_too(tiny_model, random_tokens, dtype):
    model = tiny_model("llama", dtype)
    calibration = Calibration(random_tokens(3, 24), batch_size=2)
    batches = [out.hidden_states for out in own_forward(model, calibration, output_hidden_states=True)]
    for block, inputs in iterate_blocks(model, calibration):
        assert inputs.hidden.dtype == dtype
        assert torch.equal(inputs.hidden, torch.cat([states[block.index] for states in batches]))


def test_hidden_states_are_overwritten_in_place(tiny_model, random_tokens):
    storages = {
        inputs.hidden.data_ptr()
        for _, inputs in iterate_blocks(tiny_model("opt"), Calibration(random_tokens(4, 8), batch_size=2))
    }
    assert len(storages) == 1


def test_the_model_is_left_as_it_was(tiny_model, family, random_tokens):
    model = tiny_model(family)
    calibration = Calibration(random_tokens(3, 24))
    before = model.fingerprint()
    logits = own_forward(model, calibration)[0].logits
    for _, inputs in iterate_blocks(model, calibration):
        collect(inputs, Hessian)
    assert model.fingerprint() == before
    assert torch.equal(own_forward(model, calibration)[0].logits, logits)
    for block in model.blocks:
        assert "forward" not in vars(block.module)
        assert not any(module._forward_pre_hooks for module in block.module.modules())


def test_a_walk_that_breaks_off_leaves_the_model_usable(tiny_model, random_tokens):
    model = tiny_model("llama")
    calibration = Calibration(random_tokens(2, 8))
    logits = own_forward(model, calibration)[0].logits
    for _ in iterate_blocks(model, calibration):
        break
    assert torch.equal(own_forward(model, calibration)[0].logits, logits)


@pytest.mark.parametrize("wrong", [64, -1])
def test_a_token_outside_the_vocabulary_is_refused(tiny_model, random_tokens, wrong):
    tokens = random_tokens()
    tokens[1, 2] = wrong
    with pytest.raises(BadInput, match=f"{wrong}.*0 to 63"):
        next(iterate_blocks(tiny_model("opt"), Calibration(tokens)))


def test_activations_that_are_not_finite_name_the_block(tiny_model, random_tokens):
    model = tiny_model("llama")
    model.blocks[1].linears[-1].weight[0, 0] = float("nan")
    with pytest.raises(RunFailed, match=r"model\.layers\.1: .*NaN.*samples 0 to 1.*model\.dtype=float32"):
        for _ in iterate_blocks(model, Calibration(random_tokens(3, 8), batch_size=2)):
            pass


def test_an_overflow_in_half_precision_is_not_passed_on(tiny_model, random_tokens):
    model = tiny_model("llama", torch.float16)
    model.blocks[0].linears[-1].weight.fill_(6e4)
    with pytest.raises(RunFailed, match=r"model\.layers\.0"):
        list(iterate_blocks(model, Calibration(random_tokens(2, 8))))


def test_outputs_are_propagated_once_and_shown_before_they_are_stored(tiny_model, random_tokens):
    calibration, shown = Calibration(random_tokens(3, 8), batch_size=2), []
    for block, inputs in iterate_blocks(tiny_model("opt"), calibration):
        before = inputs.hidden.clone()
        for _ in range(2):
            inputs.propagate(lambda batch, output, index=block.index: shown.append((index, batch.start, len(output))))
        assert torch.equal(inputs.hidden, before) is inputs.last
    assert shown == [(0, 0, 2), (0, 2, 1), (1, 0, 2), (1, 2, 1)]  # nobody reads the outputs of the last


def test_hidden_states_that_do_not_fit_are_refused_before_they_are_made(tiny_model, random_tokens, monkeypatch):
    model, tokens = tiny_model("opt"), random_tokens(5, 24)
    needed = 5 * 24 * 32 * 4
    monkeypatch.setattr(blocks, "available_memory", lambda: needed)
    assert next(iterate_blocks(model, Calibration(tokens)))
    monkeypatch.setattr(blocks, "available_memory", lambda: needed - 1)
    with pytest.raises(BadInput, match=r"hidden states of 5 calibration samples of 24 tokens take .* GB of"):
        next(iterate_blocks(model, Calibration(tokens)))
