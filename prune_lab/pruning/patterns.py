"""The kinds of patterns, and the units of each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from prune_lab.models.block import Block
from prune_lab.models.model_units import experts_of, heads_of, keys_of, neurons_of, query_heads_of, values_of
from prune_lab.models.units import Units

Pattern = Literal[  # or N:M
    "unstructured", "neurons", "heads", "width", "query_heads", "neurons_query_heads", "values", "neurons_values",
    "keys", "neurons_values_keys", "experts", "blocks", "sub_blocks",
]  # fmt: skip
PatternKind = Pattern | Literal["N:M"]

UNITS_OF: Mapping[str, Sequence[Callable[[Block], Units]]] = {
    "neurons": (neurons_of,),
    "heads": (heads_of,),
    "width": (heads_of, neurons_of),
    "query_heads": (query_heads_of,),
    "neurons_query_heads": (query_heads_of, neurons_of),
    "values": (values_of,),
    "neurons_values": (values_of, neurons_of),
    "keys": (keys_of,),
    "neurons_values_keys": (keys_of, values_of, neurons_of),
    "experts": (experts_of,),
}
"""Of a block, in the order of a forward pass; whole blocks and their halves are those of a model."""

IN_PARAMETERS = ("width", "neurons_query_heads", "neurons_values", "neurons_values_keys")
"""Those with units of several sizes, whose level is a share of parameters."""

INSIDE_HEADS = ("values", "neurons_values", "keys", "neurons_values_keys")
"""Those that take rows of single heads."""

TIMED = ("neurons", "heads", "width")
"""Those that latency tables know."""
