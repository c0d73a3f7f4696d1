import pytest
import torch
from transformers import AutoModelForCausalLM

from prune_lab.models.biases import add_biases, match_biases, without_bias

CAN = {"llama": ("attention", "mlp"), "qwen3": ("attention",), "gemma3_text": ("attention",)}
HAVE = ("opt", "gpt2", "gpt_neo", "gpt_neox")


def readers(model):
    return [linear for block in model.blocks for linear in (block.attention.out, block.mlp.down)]


def test_a_bias_of_zero_changes_no_output_and_is_saved_as_the_family_has_it(
    tiny_model, family, random_tokens, tmp_path
):
    model, tokens = tiny_model(family), random_tokens(2, 12)
    before = model.hf(tokens).logits
    lacking = without_bias(model, readers(model))
    add_biases(model, readers(model))
    assert torch.equal(model.hf(tokens).logits, before)
    with_bias = [linear for linear in readers(model) if linear.bias is not None]
    assert [linear for linear in readers(model) if linear.bias is None] == lacking
    expected = {"attention": 3, "mlp": 3}
    assert len(with_bias) == (6 if family in HAVE else sum(expected[part] for part in CAN.get(family, ())))
    for linear in with_bias:
        linear.write_bias(torch.full((linear.shape[0],), 0.5))
    changed = model.hf(tokens).logits
    model.hf.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert {name: tuple(tensor.shape) for name, tensor in opened.state_dict().items()} == {
        name: tuple(tensor.shape) for name, tensor in model.hf.state_dict().items()
    }
    torch.testing.assert_close(opened(tokens).logits, changed, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_a_family_without_such_a_key_stays_as_it_is(tiny_model, family):
    model = tiny_model(family)
    names = set(model.hf.state_dict())
    assert without_bias(model, readers(model)) == readers(model)
    add_biases(model, readers(model))
    assert set(model.hf.state_dict()) == names


def test_biases_are_those_of_the_saved_weights(tiny_model):
    model, other = tiny_model("llama"), tiny_model("llama")
    add_biases(model, [block.mlp.down for block in model.blocks])
    assert (model.hf.config.mlp_bias, model.hf.config.attention_bias) == (True, False)
    match_biases(other, set(model.hf.state_dict()))
    other.hf.load_state_dict(model.hf.state_dict())
    assert (other.hf.config.mlp_bias, other.hf.config.attention_bias) == (True, False)
