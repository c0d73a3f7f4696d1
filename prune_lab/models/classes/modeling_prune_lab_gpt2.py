"""A model of the family gpt2 whose blocks differ in width: prune_lab has taken neurons or heads out of it.

This file needs transformers, and not prune_lab: ``AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)``.
"""

from typing import Any

from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

__all__ = ["PruneLabGPT2Config", "PruneLabGPT2LMHeadModel"]


class PruneLabGPT2Config(GPT2Config):
    """Says how wide each block is.

    Attributes:
        neurons_per_block: of the feed-forward networks; None: as many as in the other keys.
        heads_per_block: of the attentions' keys and values; likewise.
    """

    model_type = "prune_lab_gpt2"
    neurons_per_block: list[int] | None = None
    heads_per_block: list[int] | None = None


class PruneLabGPT2LMHeadModel(GPT2LMHeadModel):
    """The family's own model, with smaller matrices in its blocks."""

    config_class = PruneLabGPT2Config

    def __init__(self, config: PruneLabGPT2Config):
        super().__init__(config)
        blocks: Any = self.transformer.h  # whose modules torch declares as any
        if config.neurons_per_block is not None:
            for block, neurons in zip(blocks, config.neurons_per_block, strict=True):
                _resize(block.mlp.c_fc, rows=neurons)
                _resize(block.mlp.c_proj, columns=neurons)
        if config.heads_per_block is not None:
            whole = config.num_attention_heads
            for block, heads in zip(blocks, config.heads_per_block, strict=True):
                attention = block.attn
                _resize(attention.c_attn, rows=attention.c_attn.nf * heads // whole)
                _resize(attention.c_proj, columns=attention.c_proj.nx * heads // whole)
                attention.num_heads = attention.num_heads * heads // whole
                attention.split_size = attention.split_size * heads // whole


def _resize(linear: Conv1D, rows: int | None = None, columns: int | None = None) -> None:
    """Makes a layer smaller; its weights are read from the files, or those of the first rows and columns."""
    linear.weight = nn.Parameter(linear.weight.detach()[:columns, :rows].clone())
    linear.nx, linear.nf = linear.weight.shape
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[:rows].clone())
