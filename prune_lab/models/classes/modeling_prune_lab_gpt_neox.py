"""A model of the family gpt_neox whose blocks differ in width: prune_lab has taken neurons or heads out of it.

This file needs transformers, and not prune_lab: ``AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)``.
"""

from typing import Any

from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

__all__ = ["PruneLabGPTNeoXConfig", "PruneLabGPTNeoXForCausalLM"]


class PruneLabGPTNeoXConfig(GPTNeoXConfig):
    """Says how wide each block is.

    Attributes:
        neurons_per_block: of the feed-forward networks; None: as many as in the other keys.
        heads_per_block: of the attentions' keys and values; likewise.
    """

    model_type = "prune_lab_gpt_neox"
    neurons_per_block: list[int] | None = None
    heads_per_block: list[int] | None = None


class PruneLabGPTNeoXForCausalLM(GPTNeoXForCausalLM):
    """The family's own model, with smaller matrices in its blocks."""

    config_class = PruneLabGPTNeoXConfig

    def __init__(self, config: PruneLabGPTNeoXConfig):
        super().__init__(config)
        blocks: Any = self.gpt_neox.layers  # whose modules torch declares as any
        if config.neurons_per_block is not None:
            for block, neurons in zip(blocks, config.neurons_per_block, strict=True):
                _resize(block.mlp.dense_h_to_4h, rows=neurons)
                _resize(block.mlp.dense_4h_to_h, columns=neurons)
        if config.heads_per_block is not None:
            whole = config.num_attention_heads
            for block, heads in zip(blocks, config.heads_per_block, strict=True):
                attention = block.attention
                _resize(attention.query_key_value, rows=attention.query_key_value.out_features * heads // whole)
                _resize(attention.dense, columns=attention.dense.in_features * heads // whole)


def _resize(linear: nn.Linear, rows: int | None = None, columns: int | None = None) -> None:
    """Makes a layer smaller; its weights are read from the files, or those of the first rows and columns."""
    linear.weight = nn.Parameter(linear.weight.detach()[:rows, :columns].clone())
    linear.out_features, linear.in_features = linear.weight.shape
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[:rows].clone())
