"""A model of the family gemma3_text whose blocks differ in width: prune_lab took neurons, heads or values out.

This file needs transformers, and not prune_lab:
``AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

__all__ = ["PruneLabGemma3ForCausalLM", "PruneLabGemma3TextConfig"]


class PruneLabGemma3TextConfig(Gemma3TextConfig):
    """Says how wide each block is.

    Attributes:
        neurons_per_block: of the feed-forward networks; None: as many as in the other keys.
        heads_per_block: of the attentions' keys and values; likewise.
        query_heads_per_block: of the attentions' queries, equally many for each key; None: as in other keys.
        values_per_block: of the attentions' values, those of each head of keys and values; None: as many as keys.
    """

    model_type = "prune_lab_gemma3_text"
    neurons_per_block: list[int] | None = None
    heads_per_block: list[int] | None = None
    query_heads_per_block: list[int] | None = None
    values_per_block: list[list[int]] | None = None


class PruneLabGemma3ForCausalLM(Gemma3ForCausalLM):
    """The family's own model, with blocks as its configuration describes them."""

    config_class = PruneLabGemma3TextConfig

    def __init__(self, config: PruneLabGemma3TextConfig):
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
        if config.query_heads_per_block is not None:
            for block, heads in zip(blocks, config.query_heads_per_block, strict=True):
                attention = block.self_attn
                whole = attention.q_proj.out_features // attention.head_dim
                _resize(attention.q_proj, rows=attention.q_proj.out_features * heads // whole)
                _resize(attention.o_proj, columns=attention.o_proj.in_features * heads // whole)
                attention.num_key_value_groups = attention.num_key_value_groups * heads // whole
        if config.values_per_block is not None:
            for block, values in zip(blocks, config.values_per_block, strict=True):
                attention = block.self_attn
                projection, out = attention.v_proj, attention.o_proj
                size = attention.head_dim
                queries = attention.q_proj.out_features // attention.k_proj.out_features
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
    projection.places_on, out.places_on = {}, {}


def spread_outputs(module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """Puts the outputs of a projection into their places, zeros between them; to be a hook behind it."""
    places = places_on(module, module.kept_outputs, output.device)
    return output.new_zeros(*output.shape[:-1], module.all_outputs).index_copy(-1, places, output)


def take_inputs(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Takes those inputs of a projection that it has columns for; to be a hook before it."""
    places = places_on(module, module.kept_inputs, inputs[0].device)
    return (inputs[0].index_select(-1, places), *inputs[1:])


def places_on(module: Any, places: Sequence[int], device: torch.device) -> Tensor:
    """The places as a tensor, made once for each device: every pass needs it."""
    if device not in module.places_on:
        with torch.inference_mode(False):  # or a training could not use what an evaluation has made
            module.places_on[device] = torch.tensor(places, dtype=torch.int64, device=device)
    found: Tensor = module.places_on[device]
    return found
