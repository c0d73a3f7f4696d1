"""What is removed whole of an attention: heads, and parts of them."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.models.units import UnitKind, Units
from prune_lab.models.view import Attention


@dataclass(frozen=True, eq=False)
class Heads(Units):
    """The attention heads of a block: rows of query, key and value with their biases, columns of the output.

    Where several queries share a key and a value, they are one unit with them.
    """

    attention: Attention
    kind: ClassVar[UnitKind] = "heads"

    def select(self, keep: Tensor) -> None:
        """Removes the other heads, and tells the module how many are left."""
        attention, kept = self.attention, keep.nonzero().flatten().tolist()
        values, places, queries = attention.values, attention.key_places, attention.queries_per_key
        super().select(keep)
        attention.tell(len(kept))
        if attention.has_fewer_keys:
            attention.narrow_keys([places[head] for head in kept], queries)
        if attention.has_fewer_values:
            attention.narrow([values[head] for head in kept], queries)


@dataclass(frozen=True, eq=False)
class QueryHeads(Units):
    """The heads of queries of a block, where several share a key and a value, which stay.

    Head i is rows of the query projection with their biases, and columns of the output. Those that share a key lie side
    by side. Every key has equally many queries, so that one of each goes at a time.
    """

    attention: Attention
    kind: ClassVar[UnitKind] = "query_heads"

    @property
    def least(self) -> int:
        """One for each key."""
        return self.at_once

    @property
    def at_once(self) -> int:
        """As many as there are keys."""
        return self.attention.kv_heads

    @property
    def zero(self) -> Tensor:
        """Which are nothing but zeros already, equally many of each key: the first ones, of `shape`, bool."""
        zero = super().zero.unflatten(0, (self.at_once, -1))
        fewest = zero.count_nonzero(1).min()
        even: Tensor = zero & (zero.cumsum(1) <= fewest)
        return even.flatten()

    def is_even(self, keep: Tensor) -> bool:
        """Whether a mask ``(count,)`` keeps equally many for every key."""
        return len(set(keep.unflatten(0, (self.at_once, -1)).count_nonzero(1).tolist())) == 1

    def select(self, keep: Tensor) -> None:
        """Removes the other heads, and tells the module how many share a key now."""
        attention, queries = self.attention, int(keep.count_nonzero()) // self.at_once
        values, places = attention.values, attention.key_places
        super().select(keep)
        attention.tell_queries(queries)
        if attention.has_fewer_keys:
            attention.narrow_keys(places, queries)
        if attention.has_fewer_values:
            attention.narrow(values, queries)


@dataclass(frozen=True, eq=False)
class PartsOfHeads(Units):
    """Units each of which lies within a head of keys and values.

    Attributes:
        head: which one each belongs to, ``(count,)`` int64 on the host.
    """

    attention: Attention
    head: Tensor

    def per_head(self, keep: Tensor) -> Tensor:
        """How many each head keeps: ``(kv_heads,)`` int64, on the device of ``keep``."""
        zeros = torch.zeros(self.attention.kv_heads, dtype=torch.int64, device=keep.device)
        return zeros.index_add_(0, self.head.to(keep.device), keep.long())


@dataclass(frozen=True, eq=False)
class Values(PartsOfHeads):
    """The values of a block's attention: what the heads of keys and values hand on.

    Value j of a head is row j of its value projection with its bias, and column j of the output projection, of all
    heads of queries that share it. Queries and keys stay as they are, and so do the weights of attention.
    """

    kind: ClassVar[UnitKind] = "values"

    def select(self, keep: Tensor) -> None:
        """Removes the other values, and tells the module where the rest belongs."""
        counts, queries = self.per_head(keep).tolist(), self.attention.queries_per_key
        super().select(keep)
        self.attention.narrow(counts, queries)


@dataclass(frozen=True, eq=False)
class Keys(PartsOfHeads):
    """The rows by which queries and keys of a block's attention are compared.

    Row j of a head is row j of its key projection with its bias, and that of the query projection, of all heads of
    queries that share the key. Where positions rotate rows in pairs, a unit is a pair.

    Attributes:
        places: of each unit, which rows of its head it is.
    """

    places: tuple[tuple[int, ...], ...]
    kind: ClassVar[UnitKind] = "keys"

    @property
    def zero(self) -> Tensor:
        """Which units compare nothing, bool on the host: those of zeros.

        Of a pair of rows the biases must be zero, too, in the queries or in the keys: positions rotate them, so that
        they would tell positions apart. The biases of other rows add as much to the scores of all keys.
        """
        zero = super().zero
        biases = [
            member.gather(member.bias.float().abs(), self.count).cpu()
            for member in self.members
            if member.bias is not None
        ]
        if all(len(places) == 1 for places in self.places) or len(biases) < len(self.members):
            return zero
        return zero & (torch.stack(biases) == 0).any(0)

    def select(self, keep: Tensor) -> None:
        """Removes the other rows, and tells the module where the rest belongs."""
        kept: list[list[int]] = [[] for _ in range(self.attention.kv_heads)]
        for number in keep.nonzero().flatten().tolist():
            kept[int(self.head[number])] += self.places[number]
        queries = self.attention.queries_per_key
        super().select(keep)
        self.attention.narrow_keys([sorted(places) for places in kept], queries)
