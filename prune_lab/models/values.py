"""Attention whose heads have fewer values than keys: some rows of the value projection are taken out.

The attention itself computes with heads of equal width, whatever the library's code for it is. So the projection's
outputs are spread over the places that they had, zeros between them, and the output projection takes no others. Values
are not rotated by positions, so that those of a head can move to its first places.

`narrow_values` is copied into the files of `prune_lab.models.classes`, with what it needs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


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
