"""The shapes of the reference models: one of each style, with the same vocabulary and context."""

from __future__ import annotations

import torch
import transformers
from reference_models.text import CONTEXT, END_OF_TEXT_ID, VOCABULARY
from torch import nn

SPECIAL_IDS = {f"{role}_token_id": END_OF_TEXT_ID for role in ("bos", "eos", "pad")}


def llama_config() -> transformers.PretrainedConfig:
    """Returns the configuration in Llama style: rotary positions, gated MLP, two key-value heads for six heads."""
    return transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=448,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        **SPECIAL_IDS,
    )


def opt_config() -> transformers.PretrainedConfig:
    """Returns the configuration in OPT style: learned positions, ReLU, biases, norms before the blocks."""
    return transformers.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=160,
        word_embed_proj_dim=160,
        ffn_dim=640,
        num_hidden_layers=6,
        num_attention_heads=5,
        max_position_embeddings=CONTEXT,
        do_layer_norm_before=True,
        dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
        tie_word_embeddings=True,
        **SPECIAL_IDS,
    )


def gpt_neo_config() -> transformers.PretrainedConfig:
    """Returns the configuration in GPT-Neo style: global attention in turn with attention to the last 128 tokens."""
    return transformers.GPTNeoConfig(
        vocab_size=VOCABULARY,
        hidden_size=160,
        intermediate_size=640,
        num_layers=6,
        num_heads=5,
        attention_types=[[["global", "local"], 3]],
        window_size=128,
        max_position_embeddings=CONTEXT,
        activation_function="gelu_new",
        resid_dropout=0.0,
        embed_dropout=0.0,
        attention_dropout=0.0,
        tie_word_embeddings=True,
        **SPECIAL_IDS,
    )


STYLES = {"llama": llama_config, "opt": opt_config, "gpt_neo": gpt_neo_config}


def build_model(style: str, seed: int) -> transformers.PreTrainedModel:
    """Returns a freshly initialised float32 model; all its embeddings are trained, that of the separator too."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(STYLES[style](), dtype=torch.float32)
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            # A padding index would zero the embedding's gradient, and here the padding token is also the separator.
            module.padding_idx = None
            nn.init.normal_(module.weight.data[END_OF_TEXT_ID], std=0.02)
    return model
