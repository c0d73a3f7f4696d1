import pytest
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from prune_lab.errors import BadInput
from prune_lab.models.load import Checkpoint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 0),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 3.0),
        ("num_hidden_layers", True),
        ("hidden_size", 10**12),
        ("head_dim", 10**9),
        ("intermediate_size", 2**23),
        ("vocab_size", "64"),
        ("num_attention_heads", 0),
        ("num_labels", 10**9),
        ("max_position_embeddings", -5),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", -1e-6),
        ("attention_dropout", 2),
        ("rope_parameters", {"rope_type": "default", "rope_theta": float("inf")}),
        ("attn_implementation", "someone/kernel"),
        ("quantization_config", {"quant_method": "new"}),
        ("quantization_config", 5),
        ("transformers_weights", "other.safetensors"),
        ("model_type", "bert"),
    ],
)
def test_a_value_that_cannot_be_is_refused_before_anything_is_built(model_folder, change_config, key, value):
    folder = model_folder("llama")
    change_config(folder, **{key: value})
    with pytest.raises(BadInput) as caught:
        Checkpoint(str(folder))
    message = str(caught.value)
    assert message.startswith(f"Checkpoint.path={folder}: ")
    assert key in message or key == "model_type"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("heads_per_block", value) for value in ([2, 2], "2,2", 2, [2.0, 2, 2], {"0": 2}, [[2]] * 3, [2, 2, -1])],
        ("neurons_per_block", ["20", "20", "20"]),
        ("neurons_per_block", [20, 20, 10**10]),
        ("values_per_block", [12, 12, 12]),
        ("keys_per_block", [[1, 2], [1], [3]]),
    ],
    ids=str,
)
def test_sizes_of_blocks_that_cannot_be_are_told(model_folder, change_config, key, value):
    folder = model_folder("bert")
    change_config(folder, **{key: value})
    with pytest.raises(BadInput, match=rf"config\.json has {key}.*(for each block, in a list|num_hidden_layers=3)"):
        Checkpoint(str(folder))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "foo"),
        ("num_attention_heads", 5),
        ("rope_parameters", {"rope_type": "foo", "rope_theta": 1e4}),
        ("pad_token_id", 99),
        ("dtype", "float99"),
        ("layer_types", ["foo"]),
    ],
)
def test_a_value_that_the_library_refuses_is_told_with_its_key(model_folder, change_config, key, value):
    folder = model_folder("llama")
    change_config(folder, **{key: value})
    with pytest.raises(BadInput, match=r"no model can be made of its config\.json: ") as caught:
        Checkpoint(str(folder)).load_config()
    assert "Correct the key" in str(caught.value)
    assert key in str(caught.value) or key in ("num_attention_heads", "pad_token_id")


@pytest.mark.parametrize(
    ("family", "key", "value", "allowed"),
    [
        ("llama", "rms_norm_eps", "small", "numbers"),
        ("llama", "tie_word_embeddings", 3, "true, false"),
        ("opt", "do_layer_norm_before", "yes", "true, false"),
        ("opt", "activation_function", 5, "texts"),
        ("gpt2", "eos_token_id", {"a": 1}, "whole numbers, or lists, or null"),
        ("llama", "attention_dropout", "x", "numbers, or null"),
        ("opt", "rope_scaling", 3, "objects"),
        ("llama", "layer_types", "x", "lists"),
        ("llama", "dtype", 3, "texts"),
        ("gpt2", "id2label", 5, "objects"),
    ],
)
def test_a_value_of_another_type_is_told_without_words_of_python(
    model_folder, change_config, family, key, value, allowed
):
    folder = model_folder(family)
    change_config(folder, **{key: value})
    with pytest.raises(BadInput) as caught:
        Checkpoint(str(folder)).load_config()
    said = str(caught.value)
    assert said.startswith(f"Checkpoint.path={folder}: ") and f"{key}={value!r}" in said
    assert f"allowed: {allowed}. Correct the key" in said
    assert not [word for word in ("Error", "Field", "NoneType", "<class") if word in said]


def test_a_damaged_configuration_of_generation_is_refused(model_folder):
    folder = model_folder("llama")
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(BadInput, match=r"generation_config\.json is not valid JSON"):
        Checkpoint(str(folder))


def test_a_value_that_only_a_pass_shows_is_refused_too(model_folder, change_config):
    folder = model_folder("llama")
    change_config(folder, return_dict=False)
    with pytest.raises(BadInput, match=r"no model can be made of its config\.json"):
        Checkpoint(str(folder)).load()


@pytest.mark.parametrize("layers", [2, 4])
def test_fewer_or_more_blocks_than_the_weights_have_are_refused(model_folder, change_config, family, layers):
    folder = model_folder(family)
    depth = {"gpt2": "n_layer", "gpt_neo": "num_layers"}.get(family, "num_hidden_layers")
    change_config(folder, **{depth: layers})
    with pytest.raises(BadInput, match=rf"config\.json says {depth}={layers}, and the weights have 3 blocks"):
        Checkpoint(str(folder))


def test_a_key_of_another_family_changes_nothing(model_folder, change_config):
    folder = model_folder("gpt2")
    change_config(folder, head_dim=[3])
    assert Checkpoint(str(folder)).load().blocks[0].attention.head_dim == 8


@pytest.mark.parametrize("key", ["AutoModelForCausalLM", "AutoConfig"])
def test_a_class_of_the_checkpoint_is_not_trusted_in_vain(model_folder, change_config, key):
    """The model is the family's own, of which nobody asks for foreign code."""
    folder = model_folder("llama")
    change_config(folder, auto_map={key: "modeling_x.MyLlama", "AutoTokenizer": ["x.MyTokenizer", None]})
    assert Checkpoint(str(folder)).load().hf.__class__.__name__ == "LlamaForCausalLM"
    message = r"trust_remote_code=true is not allowed: config.json names classes of its own \(modeling_x.MyLlama\)"
    with pytest.raises(BadInput, match=message):
        Checkpoint(str(folder), trust_remote_code=True).load_config()
    change_config(folder, auto_map={"AutoTokenizer": ["x.MyTokenizer", None]})
    Checkpoint(str(folder), trust_remote_code=True).load_config()


def test_a_size_of_networks_that_a_mixture_has_not_is_no_mistake(tmp_path):
    """All blocks have experts, and the default is larger than any weight."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": []}
    config = Qwen3MoeConfig(vocab_size=64, head_dim=16, **sizes, **experts)
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path)
    assert config.intermediate_size > 1000
    assert len(Checkpoint(str(tmp_path)).load().blocks) == 2
