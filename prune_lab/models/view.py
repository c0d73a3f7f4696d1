"""The parts of a block that pruning works on: weight matrices, and the two halves that they make.

Every weight is shown as ``(out, in)``, whatever the layer stores (GPT-2's ``Conv1D`` stores ``(in, out)``).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from prune_lab.errors import RunFailed
from prune_lab.models.values import narrow_keys, narrow_values
from prune_lab.utils.finite import all_finite

if TYPE_CHECKING:  # importing model code takes seconds, which a mistake in the settings should not cost
    from transformers.pytorch_utils import Conv1D


Layout = Literal["separate", "parts", "heads"]
"""How the projections of an attention lie; see `Attention`."""

FreeKeys = Literal["rows", "pairs"]
"""What of queries and keys can go; see `Attention`."""


@dataclass(frozen=True, eq=False)
class PrunableLinear:
    """One prunable weight matrix: ``name`` is the path of its layer in the model."""

    name: str
    module: "nn.Linear | Conv1D"

    @property
    def parameter(self) -> Tensor:
        """What holds the weight as it is stored, and maybe those of other linear layers beside it."""
        return self.module.weight

    @property
    def present(self) -> Tensor:
        """The weight that the model has, ``(out, in)``; a view of the parameter."""
        return self.seen(self.parameter.detach())

    @property
    def weight(self) -> Tensor:
        """The weight, ``(out, in)``: `present`, unless a solver is shown another one."""
        return self.present

    def seen(self, stored: Tensor) -> Tensor:
        """Of a tensor that is stored like the parameter, such as its gradient, what is this layer's, ``(out, in)``.

        A view.
        """
        return stored if isinstance(self.module, nn.Linear) else stored.T

    def stored_dim(self, dim: int) -> int:
        """Where the parameter has the dimension ``dim`` of ``(out, in)``."""
        return dim if isinstance(self.module, nn.Linear) else 1 - dim

    @property
    def bias(self) -> Tensor | None:
        """The bias, ``(out,)``, or ``None``."""
        return None if self.module.bias is None else self.module.bias.detach()

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        out_features, in_features = self.weight.shape
        return out_features, in_features

    @torch.no_grad()
    def write(self, weight: Tensor) -> None:
        """Copies ``weight``, ``(out, in)`` of any float type, into the parameter; casts to its type.

        Raises:
            RunFailed: a value is not finite in the type of the parameter.
        """
        cast = weight.to(self.parameter.dtype)
        if not all_finite(cast):
            raise RunFailed(
                f"{self.name}: the pruned weight has NaN or infinite values; use a larger model.dtype or more damping"
            )
        self.weight.copy_(cast)

    @torch.no_grad()
    def write_bias(self, bias: Tensor) -> None:
        """Copies ``bias``, ``(out,)`` of any float type, into that of the layer, which has one; casts to its type.

        Raises:
            RunFailed: a value is not finite in the type of the parameter.
        """
        assert self.bias is not None
        cast = bias.to(self.bias.dtype)
        if not all_finite(cast):
            raise RunFailed(f"{self.name}: the new bias has NaN or infinite values; use a larger model.dtype")
        self.bias.copy_(cast)

    @torch.no_grad()
    def select(self, dim: int, index: Tensor) -> None:
        """Keeps some outputs (``dim`` 0, with their biases) or inputs (``dim`` 1); the layer is smaller afterwards."""
        index, module = index.to(self.weight.device), self.module
        module.weight = nn.Parameter(module.weight.detach().index_select(self.stored_dim(dim), index), False)
        if dim == 0 and module.bias is not None:
            module.bias = nn.Parameter(module.bias.detach()[index], False)
        names = ("out_features", "in_features") if isinstance(module, nn.Linear) else ("nf", "nx")
        setattr(module, names[dim], len(index))


class FeedForward(ABC):
    """The feed-forward half of a block: one network (`Mlp`), or several (`prune_lab.models.experts.Moe`)."""

    @property
    @abstractmethod
    def linears(self) -> tuple[PrunableLinear, ...]:
        """All linear layers, in the order in which a block names them."""

    @property
    @abstractmethod
    def steps(self) -> tuple[tuple[PrunableLinear, ...], ...]:
        """The linear layers that a forward pass reaches at once."""

    @property
    @abstractmethod
    def last(self) -> nn.Module:
        """The module whose output, ``(..., hidden)``, is that of the feed-forward network."""

    @property
    @abstractmethod
    def weights_per_token(self) -> int:
        """How many weights of the linear layers a token is multiplied by."""


@dataclass(frozen=True, eq=False)
class Mlp(FeedForward):
    """A feed-forward network: ``down(act(up(x)))``, or with a gate ``down(act(gate(x)) * up(x))``."""

    up: PrunableLinear
    down: PrunableLinear
    gate: PrunableLinear | None
    activation: str  # as transformers call it: relu, silu, gelu_new, ...

    @property
    def linears(self) -> tuple[PrunableLinear, ...]:
        """Gate, up and down, those that there are."""
        return (self.gate, self.up, self.down) if self.gate else (self.up, self.down)

    @property
    def steps(self) -> tuple[tuple[PrunableLinear, ...], ...]:
        """Gate and up, then down."""
        return (self.linears[:-1], self.linears[-1:])

    @property
    def last(self) -> nn.Module:
        """The down-projection."""
        return self.down.module

    @property
    def weights_per_token(self) -> int:
        """All of them."""
        return sum(linear.weight.numel() for linear in self.linears)


@dataclass(frozen=True, eq=False)
class Attention:
    """Multi-head attention.

    Attributes:
        module: that holds it.
        projections: query, key and value, or one that is all three.
        out: the output projection.
        head_dim: rows of a head, of queries and keys, that attention computes with.
        layout: ``separate``; or of a fused projection: ``parts`` (all queries, all keys, all values) or ``heads``
            (query, key and value of each head in turn).
        counters: attributes of ``module`` that say how many heads (``num_heads``) or rows of queries (``split_size``)
            there are.
        joint_norm: queries and keys of all heads are normalised together, so that no head can be cut out.
        free_keys: what of queries and keys can be cut out: single ``rows``, or ``pairs`` of rows that positions rotate
            together; None: neither.
    """

    module: nn.Module
    projections: tuple[PrunableLinear, ...]
    out: PrunableLinear
    head_dim: int
    layout: Layout
    counters: tuple[str, ...]
    joint_norm: bool = False
    free_keys: FreeKeys | None = None

    @property
    def linears(self) -> tuple[PrunableLinear, ...]:
        """The projections, then the output."""
        return (*self.projections, self.out)

    @property
    def heads(self) -> int:
        """Of queries."""
        return self._heads_of(self.projections[0]) if self.layout == "separate" else self.kv_heads

    @property
    def kv_heads(self) -> int:
        """Of keys and values; ``heads`` is a multiple of it."""
        if self.layout == "separate":
            return self._heads_of(self.projections[1])
        return len(self.values) if self.has_fewer_values else self.out.shape[1] // self.head_dim

    def _heads_of(self, projection: PrunableLinear) -> int:
        rows = projection.module.all_outputs if self.has_fewer_keys else projection.shape[0]
        return int(rows) // self.head_dim  # type: ignore[arg-type, unused-ignore]

    @property
    def queries_per_key(self) -> int:
        """How many heads of queries share a key and a value."""
        return self.heads // self.kv_heads

    @property
    def shares_keys(self) -> bool:
        """Whether several queries share a key and a value."""
        return self.queries_per_key > 1

    @property
    def is_narrow(self) -> bool:
        """Whether values, or rows of queries and keys, were taken out, see `prune_lab.models.values`."""
        return self.has_fewer_values or self.has_fewer_keys

    @property
    def has_fewer_values(self) -> bool:
        """Whether values were taken out."""
        return hasattr(self.module, "values_per_head")

    @property
    def has_fewer_keys(self) -> bool:
        """Whether rows of queries and keys were taken out."""
        return hasattr(self.module, "key_places")

    @property
    def values(self) -> list[int]:
        """How many values each key-value head has: ``head_dim``, unless some were taken out."""
        if not self.has_fewer_values:
            return [self.head_dim] * self.kv_heads
        return list(self.module.values_per_head)  # type: ignore[arg-type, unused-ignore]

    @property
    def key_places(self) -> list[list[int]]:
        """Which rows each head of keys has, and of its queries: all of ``head_dim``, unless some were taken out."""
        if not self.has_fewer_keys:
            return [list(range(self.head_dim)) for _ in range(self.kv_heads)]
        return [list(places) for places in self.module.key_places]  # type: ignore[union-attr, unused-ignore]

    def narrow(self, values: list[int], queries: int) -> None:
        """Says how many values each key-value head has left, once the matrices are smaller, for so many queries."""
        value, out = self.projections[-1].module, self.out.module
        narrow_values(self.module, value, out, values, self.head_dim, self.layout, queries)

    def narrow_keys(self, places: list[list[int]], queries: int) -> None:
        """Says which rows of its queries and of its key each head has left, likewise."""
        query, key = (projection.module for projection in self.projections[:2])
        narrow_keys(self.module, query, key, places, self.head_dim, queries)

    def owners(self) -> list[Tensor]:
        """For each projection, which key-value head each row belongs to: ``(rows,)`` int64."""
        head = torch.arange(self.kv_heads, device="cpu")  # also where a model is laid out without memory
        counts = torch.tensor(self.values, device="cpu")
        if self.layout == "heads":
            return [head.repeat_interleave(2 * self.head_dim + counts)]
        keys = torch.tensor([len(places) for places in self.key_places], device="cpu")
        rows = (self.queries_per_key * keys, keys, counts)
        parts = [head.repeat_interleave(each) for each in rows]
        return [torch.cat(parts)] if self.layout == "parts" else parts

    def owner_of_outputs(self) -> Tensor:
        """Which key-value head each column of the output projection belongs to: ``(columns,)`` int64."""
        columns = self.queries_per_key * torch.tensor(self.values, device="cpu")
        return torch.arange(self.kv_heads, device="cpu").repeat_interleave(columns)

    def tell_queries(self, per_key: int) -> None:
        """Says how many queries share a key and a value."""
        self.module.num_key_value_groups = per_key  # type: ignore[assignment, unused-ignore]

    def tell(self, kv_heads: int) -> None:
        """Says how many are left."""
        for name in self.counters:
            setattr(self.module, name, kv_heads * (self.head_dim if name == "split_size" else 1))
