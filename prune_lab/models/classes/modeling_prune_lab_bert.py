"""A model of the family bert whose blocks differ in width: prune_lab took neurons, heads or values out.

This file needs transformers, and not prune_lab:
``AutoModelForSequenceClassification.from_pretrained(DIR, trust_remote_code=True)``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

__all__ = ["PruneLabBertConfig", "PruneLabBertForSequenceClassification"]


class PruneLabBertConfig(BertConfig):
    """Says how wide each block is.

    Attributes:
        neurons_per_block: of the feed-forward networks; None: as many as in the other keys.
        heads_per_block: of the attentions' keys and values; likewise.
        values_per_block: of the attentions' values, those of each head of keys and values; None: as many as keys.
    """

    model_type = "prune_lab_bert"
    neurons_per_block: list[int] | None = None
    heads_per_block: list[int] | None = None
    values_per_block: list[list[int]] | None = None


class PruneLabBertForSequenceClassification(BertForSequenceClassification):
    """The family's own model, with blocks as its configuration describes them."""

    config_class = PruneLabBertConfig

    def __init__(self, config: PruneLabBertConfig):
        super().__init__(config)
        blocks: Any = self.bert.encoder.layer  # whose modules torch declares as any
        if config.neurons_per_block is not None:
            for block, neurons in zip(blocks, config.neurons_per_block, strict=True):
                _resize(block.intermediate.dense, rows=neurons)
                _resize(block.output.dense, columns=neurons)
        if config.heads_per_block is not None:
            whole = config.num_attention_heads
            for block, heads in zip(blocks, config.heads_per_block, strict=True):
                attention = block.attention
                _resize(attention.self.query, rows=attention.self.query.out_features * heads // whole)
                _resize(attention.self.key, rows=attention.self.key.out_features * heads // whole)
                _resize(attention.self.value, rows=attention.self.value.out_features * heads // whole)
                _resize(attention.output.dense, columns=attention.output.dense.in_features * heads // whole)
        if config.values_per_block is not None:
            for block, values in zip(blocks, config.values_per_block, strict=True):
                attention = block.attention
                projection, out = attention.self.value, attention.output.dense
                size = attention.self.attention_head_size
                queries = attention.self.query.out_features // attention.self.key.out_features
                narrow_values(attention, projection, out, values, size, "separate", queries)
                _resize(projection, rows=len(projection.kept_outputs))
                _resize(out, columns=len(out.kept_inputs))


def _resize(linear: nn.Linear, rows: int | None = None, columns: int | None = None) -> None:
    """Makes a layer smaller; its weights are read from the files, or those of the first rows and columns."""
    linear.weight = nn.Parameter(linear.weight.detach()[:rows, :columns].clone())
    linear.out_features, linear.in_features = linear.weight.shape
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[:rows].clone())


def narrow_values(
    attention: Any, projection: Any, out: Any, counts: Sequence[int], head_dim: int, layout: str, queries: int
) -> None:
    """Lets an attention compute with fewer values; its two matrices have to get their sizes beside.

    Args:
        attention: the module, which remembers ``counts``.
        projection: the linear layer that computes values, or queries, keys and values.
        out: the output projection.
        counts: the values of each key-value head, from 0 to ``head_dim``.
        head_dim: rows of a head, of keys.
        layout: ``separate``; or of a fused projection: ``parts`` (all queries, all keys, all values) or ``heads``
            (query, key and value of each head in turn).
        queries: heads of queries for each of keys and values.

    Raises:
        ValueError: a count is none.
    """
    if not all(isinstance(count, int) and 0 <= count <= head_dim for count in counts):
        raise ValueError(f"values_per_block has {list(counts)} for heads of {head_dim} values")
    apart = 2 * head_dim if layout == "heads" else 0  # a head's query and key lie before its values
    before = 2 * head_dim * len(counts) if layout == "parts" else 0
    kept = list(range(before))
    for head, count in enumerate(counts):
        first = before + head * (apart + head_dim)
        kept += range(first, first + apart + count)
    taken = [
        (head * queries + query) * head_dim + place
        for head, count in enumerate(counts)
        for query in range(queries)
        for place in range(count)
    ]
    if not hasattr(attention, "values_per_head"):
        projection.register_forward_hook(spread_outputs)
        out.register_forward_pre_hook(take_inputs)
    attention.values_per_head = list(counts)
    projection.kept_outputs, projection.all_outputs = kept, before + len(counts) * (apart + head_dim)
    out.kept_inputs = taken


def spread_outputs(module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """Puts the outputs of a projection into their places, zeros between them; to be a hook behind it."""
    places = torch.tensor(module.kept_outputs, device=output.device)
    return output.new_zeros(*output.shape[:-1], module.all_outputs).index_copy(-1, places, output)


def take_inputs(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Takes those inputs of a projection that it has columns for; to be a hook before it."""
    places = torch.tensor(module.kept_inputs, device=inputs[0].device)
    return (inputs[0].index_select(-1, places), *inputs[1:])
