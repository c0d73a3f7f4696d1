import pytest
import torch

from prune_lab.errors import RunFailed


def test_a_weight_is_written_in_place_and_cast(tiny_model):
    linear = tiny_model("gpt2", torch.bfloat16).blocks[0].linears[0]  # stored as (in, out)
    parameter = linear.module.weight
    values = torch.arange(linear.weight.numel()).view(linear.shape).float()
    linear.write(values)
    assert linear.module.weight is parameter
    assert torch.equal(parameter, values.T.bfloat16())
    assert linear.shape == (96, 32)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_not_written(tiny_model, value):
    linear = tiny_model("opt").blocks[0].linears[0]
    before, wrong = linear.weight.clone(), linear.weight.clone()
    wrong[0, 0] = value
    with pytest.raises(RunFailed, match=r"layers\.0\.self_attn\.q_proj"):
        linear.write(wrong)
    assert torch.equal(linear.weight, before)


def test_a_weight_that_overflows_the_type_of_the_parameter_is_not_written(tiny_model):
    linear = tiny_model("opt", torch.float16).blocks[0].linears[0]
    wrong = linear.weight.float()
    wrong[0, 0] = 1e5
    with pytest.raises(RunFailed, match=r"model\.dtype"):
        linear.write(wrong)


def test_the_fingerprint_tells_models_apart_by_what_they_compute(tiny_model):
    model, twin = tiny_model("opt"), tiny_model("opt")
    assert model.fingerprint() == twin.fingerprint()
    assert tiny_model("opt", seed=1).fingerprint() != model.fingerprint()
    assert tiny_model("opt", torch.bfloat16).fingerprint() != model.fingerprint()
    twin.blocks[2].linears[-1].weight[0, 0] += 1e-3
    assert twin.fingerprint() != model.fingerprint()


def test_the_limits_of_a_model_are_read_from_it(tiny_model, family):
    model = tiny_model(family)
    assert (model.vocab_size, model.seqlen_limit, model.dtype) == (64, 64, torch.float32)
    assert not model.hf.training


def test_a_placed_model_comes_back_even_after_a_failure(tiny_model):
    model = tiny_model("opt")
    with pytest.raises(ZeroDivisionError), model.placed(torch.device("cpu")) as hf:
        assert hf is model.hf
        _ = 1 / 0
    assert {parameter.device.type for parameter in model.hf.parameters()} == {"cpu"}


def test_the_output_embedding_of_a_placed_model_gets_contiguous_inputs(tiny_model, family):
    model, seen = tiny_model(family), []
    tokens = torch.arange(12).view(2, 6)
    before = model.hf(input_ids=tokens, logits_to_keep=2).logits
    head = model.hf.get_output_embeddings()
    with model.placed(torch.device("cpu")) as hf:
        watch = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
        torch.testing.assert_close(hf(input_ids=tokens, logits_to_keep=2).logits, before)  # not bit for bit: other sums
        watch.remove()
    assert seen == [True]
    assert not head._forward_pre_hooks
