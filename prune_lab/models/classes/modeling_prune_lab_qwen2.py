"""A model of the family qwen2 whose blocks differ in width: prune_lab has taken neurons or heads out of it.

This file needs transformers, and not prune_lab: ``AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)``.
"""

from typing import Any

from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

__all__ = ["PruneLabQwen2Config", "PruneLabQwen2ForCausalLM"]


class PruneLabQwen2Config(Qwen2Config):
    """Says how wide each block is.

    Attributes:
        neurons_per_block: of the feed-forward networks; None: as many as in the other keys.
        heads_per_block: of the attentions' keys and values; likewise.
    """

    model_type = "prune_lab_qwen2"
    neurons_per_block: list[int] | None = None
    heads_per_block: list[int] | None = None


class PruneLabQwen2ForCausalLM(Qwen2ForCausalLM):
    """The family's own model, with smaller matrices in its blocks."""

    config_class = PruneLabQwen2Config

    def __init__(self, config: PruneLabQwen2Config):
        super().__init__(config)
        blocks: Any = self.model.layers  # whose modules torch declares as any
        if config.neurons_per_block is not None:
            for block, neurons in zip(blocks, config.neurons_per_block, strict=True):
                _resize(block.mlp.gate_proj, rows=neurons)
                _resize(block.mlp.up_proj, rows=neurons)
                _resize(block.mlp.down_proj, columns=neurons)
        if config.heads_per_block is not None:
            whole = config.num_key_value_heads
            for block, heads in zip(blocks, config.heads_per_block, strict=True):
                attention = block.self_attn
                _resize(attention.q_proj, rows=attention.q_proj.out_features * heads // whole)
                _resize(attention.k_proj, rows=attention.k_proj.out_features * heads // whole)
                _resize(attention.v_proj, rows=attention.v_proj.out_features * heads // whole)
                _resize(attention.o_proj, columns=attention.o_proj.in_features * heads // whole)


def _resize(linear: nn.Linear, rows: int | None = None, columns: int | None = None) -> None:
    """Makes a layer smaller; its weights are read from the files, or those of the first rows and columns."""
    linear.weight = nn.Parameter(linear.weight.detach()[:rows, :columns].clone())
    linear.out_features, linear.in_features = linear.weight.shape
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[:rows].clone())
