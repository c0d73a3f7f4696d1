"""Attention whose heads have fewer values, or fewer rows of queries and keys: some rows of projections are taken out.

The attention itself computes with heads of equal width, whatever the library's code for it is. So the projection's
outputs are spread over the places that they had, zeros between them, and the output projection takes no others. Values
are not rotated by positions, so that those of a head can move to its first places. Queries and keys may be, so that
theirs are known by their places.

`narrow_values` and `narrow_keys` are copied into the files of `prune_lab.models.classes`, with what they need.
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
    projection.places_on, out.places_on = {}, {}


def narrow_keys(
    attention: Any, query: Any, key: Any, places: Sequence[Sequence[int]], head_dim: int, queries: int
) -> None:
    """Lets an attention compute with fewer rows of queries and keys; its matrices have to get their sizes beside.

    Args:
        attention: the module, which remembers ``places``.
        query: the linear layer that computes queries.
        key: the one that computes keys.
        places: of each head of keys, those of its rows that there are, in order, from 0 to ``head_dim - 1``.
        head_dim: rows of a head that attention computes with.
        queries: heads of queries for each of keys.

    Raises:
        ValueError: a place is none, or stands twice.
    """
    for head in places:
        if list(head) != sorted({place for place in head if isinstance(place, int) and 0 <= place < head_dim}):
            raise ValueError(f"keys_per_block has {list(head)} for a head of {head_dim} rows")
    if not hasattr(attention, "key_places"):
        query.register_forward_hook(spread_outputs)
        key.register_forward_hook(spread_outputs)
    attention.key_places = [list(head) for head in places]
    key.kept_outputs = [number * head_dim + place for number, head in enumerate(places) for place in head]
    key.all_outputs = len(places) * head_dim
    query.kept_outputs = [
        (number * queries + each) * head_dim + place
        for number, head in enumerate(places)
        for each in range(queries)
        for place in head
    ]
    query.all_outputs = queries * key.all_outputs
    query.places_on, key.places_on = {}, {}


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
