import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM, MixtralConfig

from prune_lab.errors import BadInput
from prune_lab.models.families import FAMILIES, Family, family_of
from prune_lab.models.model import PrunableModel


def test_an_unknown_family_is_refused_with_those_that_are_known():
    with pytest.raises(BadInput, match=r"'bloom'.*gpt2.*llama.*FAMILIES"):
        family_of("bloom")
    config = BloomConfig(vocab_size=16, hidden_size=8, n_layer=1, n_head=1)
    with pytest.raises(BadInput, match="'bloom'"):
        _ = PrunableModel(BloomForCausalLM(config)).blocks


def test_a_weight_that_the_row_of_a_family_has_no_path_for_is_named(monkeypatch):
    monkeypatch.setitem(FAMILIES, "mixtral", FAMILIES["mistral"])
    config = MixtralConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with pytest.raises(BadInput, match=r"model\.layers\.0: .*does not cover mlp\.gate\.weight, mlp\.experts"):
        _ = PrunableModel(AutoModelForCausalLM.from_config(config)).blocks


def test_a_path_that_the_block_lacks_is_named(monkeypatch, tiny_model):
    model = tiny_model("gpt2")
    row = FAMILIES["gpt2"]
    monkeypatch.setitem(
        FAMILIES, "gpt2", Family(row.blocks, ("attn.qkv", *row.attention), row.attention_out, row.up, row.down)
    )
    with pytest.raises(BadInput, match=r"transformer\.h\.0: the family table expects attn\.qkv"):
        _ = model.blocks


def test_every_matrix_of_a_block_is_a_site_seen_as_out_by_in(tiny_model, family):
    model = tiny_model(family)
    assert [block.index for block in model.blocks] == [0, 1, 2]
    for block in model.blocks:
        matrices = sum(parameter.numel() for parameter in block.module.parameters() if parameter.ndim >= 2)
        assert sum(linear.weight.numel() for linear in block.linears) == matrices
        for linear in block.linears:
            x = torch.randn(2, linear.shape[1])
            bias = linear.module.bias if getattr(linear.module, "bias", None) is not None else 0
            torch.testing.assert_close(linear.module(x), x @ linear.weight.T + bias)
            assert model.hf.get_submodule(linear.name) is linear.module


def test_sites_come_in_the_order_of_a_forward_pass(tiny_model, family, random_tokens):
    model = tiny_model(family)
    reached: list[str] = []
    for linear in model.linears:
        linear.module.register_forward_pre_hook(lambda *_, name=linear.name: reached.append(name))
    with torch.no_grad():
        model.hf(random_tokens(1, 8))
    assert reached == [linear.name for linear in model.linears]
