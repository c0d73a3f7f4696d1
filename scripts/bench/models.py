"""The models that are measured: random ones of known shapes, or those of folders."""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, PretrainedConfig

from prune_lab.models.load import Checkpoint, DTypeName
from prune_lab.models.model import PrunableModel

SHAPES = ("opt_125m", "llama_110m")
BLOCKS = 12  # of both shapes


def config_of(shape: str, blocks: int) -> PretrainedConfig:
    """OPT-125m's own shape, and a LLaMA of the same width and depth with grouped queries."""
    size = {"hidden_size": 768, "num_hidden_layers": blocks, "num_attention_heads": 12, "max_position_embeddings": 2048}
    if shape == "opt_125m":
        return OPTConfig(**size, vocab_size=50272, ffn_dim=3072, word_embed_proj_dim=768, dropout=0.0)
    return LlamaConfig(
        **size, vocab_size=32000, intermediate_size=2048, num_key_value_heads=4, tie_word_embeddings=True
    )


def model_of(shape: str, dtype: DTypeName, blocks: int | None) -> PrunableModel:
    """A random model of a known shape with so many blocks, or all blocks of the one of a folder."""
    if shape not in SHAPES:
        return Checkpoint(shape, dtype=dtype).load()
    hf = AutoModelForCausalLM.from_config(config_of(shape, blocks or BLOCKS)).to(getattr(torch, dtype)).eval()
    return PrunableModel(hf)


def shape_or_folder(text: str) -> str:
    """Of the command line."""
    return text if text in SHAPES else folder(text, f"neither one of {', '.join(SHAPES)} nor a folder with a model")


def folder(text: str, otherwise: str = "no folder with a model") -> str:
    """Of the command line."""
    if not (Path(text) / "config.json").is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is {otherwise}")
    return text


def small_model(dtype: DTypeName) -> PrunableModel:
    """For a prune that takes no time: what a process needs once is not part of the measurement."""
    config = OPTConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=2, ffn_dim=128, word_embed_proj_dim=64, vocab_size=100
    )
    return PrunableModel(AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype)))
