"""A model of the family gpt_neo whose blocks differ in width: prune_lab has taken neurons or heads out of it.

This file needs transformers, and not prune_lab: ``AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)``.
"""

from typing import Any

from torch import nn
from transformers import GPTNeoConfig, GPTNeoForCausalLM

__all__ = ["PruneLabGPTNeoConfig", "PruneLabGPTNeoForCausalLM"]


class PruneLabGPTNeoConfig(GPTNeoConfig):
    """Says how wide each block is.

    Attributes:
        neurons_per_block: of the feed-forward networks; None: as many as in the other keys.
        heads_per_block: of the attentions' keys and values; likewise.
    """

    model_type = "prune_lab_gpt_neo"
    neurons_per_block: list[int] | None = None
    heads_per_block: list[int] | None = None


class PruneLabGPTNeoForCausalLM(GPTNeoForCausalLM):
    """The family's own model, with smaller matrices in its blocks."""

    config_class = PruneLabGPTNeoConfig

    def __init__(self, config: PruneLabGPTNeoConfig):
        super().__init__(config)
        blocks: Any = self.transformer.h  # whose modules torch declares as any
        if config.neurons_per_block is not None:
            for block, neurons in zip(blocks, config.neurons_per_block, strict=True):
                _resize(block.mlp.c_fc, rows=neurons)
                _resize(block.mlp.c_proj, columns=neurons)
        if config.heads_per_block is not None:
            whole = config.num_attention_heads
            for block, heads in zip(blocks, config.heads_per_block, strict=True):
                attention = block.attn.attention
                _resize(attention.q_proj, rows=attention.q_proj.out_features * heads // whole)
                _resize(attention.k_proj, rows=attention.k_proj.out_features * heads // whole)
                _resize(attention.v_proj, rows=attention.v_proj.out_features * heads // whole)
                _resize(attention.out_proj, columns=attention.out_proj.in_features * heads // whole)
                attention.num_heads = attention.num_heads * heads // whole


def _resize(linear: nn.Linear, rows: int | None = None, columns: int | None = None) -> None:
    """Makes a layer smaller; its weights are read from the files, or those of the first rows and columns."""
    linear.weight = nn.Parameter(linear.weight.detach()[:rows, :columns].clone())
    linear.out_features, linear.in_features = linear.weight.shape
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[:rows].clone())
