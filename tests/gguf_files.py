"""GGUF files as llama.cpp's converter writes them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode


def write_tiny_gguf(
    folder: Path,
    family: str = "llama",
    kind: str = "F32",
    *,
    name: str = "tiny.gguf",
    words: bool = True,
    general: Mapping[str, Any] = MappingProxyType({}),
    extra: Mapping[str, np.ndarray] = MappingProxyType({}),
    **metadata: Any,
) -> tuple[Path, PreTrainedModel]:
    """Writes a tiny model of random weights; returns file and model.

    Args:
        folder: where to.
        family: by llama.cpp's name.
        kind: the quantisation of matrices.
        name: of the file.
        words: whether there is a vocabulary.
        general: changes or adds values of the whole file.
        extra: further tensors.
        metadata: changes or adds values below the family's name.
    """
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(GGUF_CONFIGS[family]()).eval()
    writer = gguf.GGUFWriter(folder / name, family)
    values = GGUF_METADATA[family](hf.config) | metadata
    for key, value in ({f"{family}.{key}": value for key, value in values.items()} | {**general}).items():
        typed = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}
        typed[type(value)](key, value)
    if words:
        _add_words(writer)
    for key, tensor in (_as_gguf(hf, family) | {**extra}).items():
        quantised = kind if tensor.ndim > 1 else "F32"
        wanted = gguf.GGMLQuantizationType[quantised]
        writer.add_tensor(key, gguf.quants.quantize(tensor, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / name, hf


def _as_gguf(hf: PreTrainedModel, family: str) -> dict[str, np.ndarray]:
    """The weights under the names and in the order of llama.cpp."""
    config = hf.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], config.num_hidden_layers)
    found = {}
    for name, tensor in hf.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, suffix = name.rpartition(".")
        array, key = tensor.float().numpy(), names.get_name(stem)
        if family == "llama" and key.endswith(("attn_q", "attn_k")):
            heads = config.num_attention_heads if key.endswith("attn_q") else config.num_key_value_heads
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        if family == "gemma3" and key.endswith("norm"):
            array = array + 1
        if family == "gpt2" and ".h." in name and array.ndim == 2:
            array = array.T
        found[f"{key}.{suffix}"] = np.ascontiguousarray(array)
    return found


def _add_words(writer: gguf.GGUFWriter) -> None:
    """A vocabulary of bytes with one merge; the first two tokens are special."""
    letters = ["<s>", "</s>", *bytes_to_unicode().values(), "ĠĠ"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(letters)
    writer.add_token_types([3, 3] + [1] * (len(letters) - 2))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")


_GGUF_SIZE = {"vocab_size": 259, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_GGUF_GQA = {**_GGUF_SIZE, "intermediate_size": 96, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1}
GGUF_CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_GGUF_GQA, max_position_embeddings=64, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**_GGUF_GQA, max_position_embeddings=64),
    "qwen3": lambda: Qwen3Config(**_GGUF_GQA, head_dim=32, max_position_embeddings=64),
    "gemma3": lambda: Gemma3TextConfig(
        **_GGUF_GQA, head_dim=16, sliding_window=16, query_pre_attn_scalar=256, max_position_embeddings=64,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=259, n_embd=64, n_layer=2, n_head=4, n_positions=32, n_inner=96, bos_token_id=0, eos_token_id=1
    ),
}  # fmt: skip


def _gqa_metadata(config: PretrainedConfig) -> dict[str, Any]:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "context_length": config.max_position_embeddings, "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size, "embedding_length": config.hidden_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps, "attention.key_length": head_dim,
        "rope.dimension_count": head_dim, "rope.freq_base": 10_000.0, "vocab_size": config.vocab_size,
    }  # fmt: skip


GGUF_METADATA: dict[str, Callable[[PretrainedConfig], dict[str, Any]]] = {
    "llama": _gqa_metadata,
    "qwen2": _gqa_metadata,
    "qwen3": _gqa_metadata,
    "gemma3": lambda config: _gqa_metadata(config) | {"attention.sliding_window": config.sliding_window},
    "gpt2": lambda config: {
        "context_length": config.n_positions, "block_count": config.n_layer, "embedding_length": config.n_embd,
        "feed_forward_length": config.n_inner, "attention.head_count": config.n_head,
        "attention.layer_norm_epsilon": config.layer_norm_epsilon,
    },
}  # fmt: skip
