"""What is removed whole: neurons, experts, blocks and their halves, or single weights; see also `head_units`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import ClassVar, Literal

import torch
from torch import Tensor

from prune_lab.models.experts import Moe
from prune_lab.models.member import Member
from prune_lab.models.view import Mlp, PrunableLinear

UnitKind = Literal["neurons", "heads", "query_heads", "values", "keys", "weights", "blocks", "sub_blocks", "experts"]


@dataclass(frozen=True, eq=False)
class Units:
    """Units of one layer. ``count`` is fixed when they are read: under a live mask a shape costs a computation."""

    name: str
    members: tuple[Member, ...]
    count: int
    kind: ClassVar[UnitKind]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of their scores and masks."""
        return (self.count,)

    @property
    def least(self) -> int:
        """How many of them stay in any case."""
        return 1

    @property
    def at_once(self) -> int:
        """How many of them have to go together, one of each of as many equal parts of all of them."""
        return 1

    @property
    def reader(self) -> Member:
        """The part that reads what the units compute: of the down-projection, or of the attention's output."""
        return next(member for member in self.members if member.dim == 1)

    def read_by(self, linear: PrunableLinear) -> "Units":
        """The units, with another linear layer in the place of `reader`'s."""
        reader = self.reader
        members = tuple(replace(each, linear=linear) if each is reader else each for each in self.members)
        return replace(self, members=members)

    @property
    def parameters_each(self) -> int:
        """How many weights and biases the model has fewer without one of them."""
        return sum(member.size for member in self.members) // max(self.count, 1)  # a block may have lost all its keys

    def norm(self, order: float, weight: Callable[[PrunableLinear], Tensor] = attrgetter("weight")) -> Tensor:
        """The norm of all weights of each unit, of `shape`, float32.

        Args:
            order: of the norm.
            weight: what to measure of a linear layer, ``(out, in)``.
        """
        norm: Tensor = torch.linalg.vector_norm(self.norms(order, weight), order, dim=0)
        return norm

    @property
    def zero(self) -> Tensor:
        """Which units are nothing but zeros already, of `shape`, bool on the host."""
        return (self.norm(1) == 0).cpu()

    def norms(self, order: float, weight: Callable[[PrunableLinear], Tensor] = attrgetter("weight")) -> Tensor:
        """The norm of each unit's part of every member, ``(members, count)`` float32."""
        return torch.stack([self._norm(member, weight(member.linear).float(), order) for member in self.members])

    def _norm(self, member: Member, weight: Tensor, order: float) -> Tensor:
        assert member.dim is not None
        norms: Tensor = torch.linalg.vector_norm(weight, order, dim=1 - member.dim)
        if member.owner is None:
            return norms
        gathered: Tensor = member.gather(norms**order, self.count) ** (1 / order)
        return gathered

    def apply(self, keep: Tensor) -> None:
        """Sets what belongs to the other units to zero; ``keep`` of `shape`, bool."""
        for member in self.members:
            member.apply(keep)
        self.settle(keep)

    def settle(self, keep: Tensor) -> None:
        """Does what is left to do once the linear layers of the other units are zero; of most nothing is."""

    def select(self, keep: Tensor) -> None:
        """Removes the other units; the layers are smaller afterwards."""
        for member in self.members:
            assert member.dim is not None
            member.linear.select(member.dim, member.spread(keep).nonzero().flatten())


def block_of(units: Units) -> str:
    """The name of the block that they are in."""
    return units.name.rpartition(".")[0]


@dataclass(frozen=True, eq=False)
class Neurons(Units):
    """The hidden neurons of a feed-forward network.

    Neuron i is row i of the up-projection (and of the gate) with its bias, and column i of the down-projection.
    """

    mlp: Mlp
    kind: ClassVar[UnitKind] = "neurons"


@dataclass(frozen=True, eq=False)
class Experts(Units):
    """The experts of a block: their weights, and their rows of the router, which norms leave out, being no members."""

    moe: Moe
    kind: ClassVar[UnitKind] = "experts"

    @property
    def least(self) -> int:
        """As many as a token goes to."""
        return self.moe.top_k

    @property
    def parameters_each(self) -> int:
        """Those of an expert, and its row of the router."""
        return super().parameters_each + self.moe.router.shape[1]

    @property
    def zero(self) -> Tensor:
        """Which experts are removed: nothing but zeros, their rows of the router too, of `shape`, bool on the host."""
        return super().zero & self.moe.removed

    def settle(self, keep: Tensor) -> None:
        """Sets the rows of the router to zero, so that it chooses among the others."""
        Member(self.moe.router, 0).apply(keep)

    def select(self, keep: Tensor) -> None:
        """Removes the other experts; the model is to forget its blocks then."""
        self.moe.select(keep)


@dataclass(frozen=True, eq=False)
class Blocks(Units):
    """The blocks of a model, all weights and biases of their linear layers.

    Without them attention and feed-forward network add zero to the residual stream, so that the block does nothing.
    `prune_lab.models.shrink.shrink` takes it out.
    """

    kind: ClassVar[UnitKind] = "blocks"
    of_block: ClassVar[int] = 1  # units of each

    @property
    def zero(self) -> Tensor:
        """Which units are nothing but zeros already, biases too, of `shape`, bool on the host."""
        zero = super().zero
        for member in self.members:
            if member.bias is not None:
                zero &= (member.gather(member.bias.abs(), self.count) == 0).cpu()
        return zero

    def select(self, keep: Tensor) -> None:
        """Blocks are not cut out of their members; see `prune_lab.models.depth`."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class SubBlocks(Blocks):
    """The halves of a model's blocks: unit 2i is the attention of block i, and unit 2i + 1 its feed-forward network."""

    kind: ClassVar[UnitKind] = "sub_blocks"
    of_block: ClassVar[int] = 2

    def whole(self, keep: Tensor) -> Tensor:
        """Which blocks keep at least one of their halves: ``(blocks,)`` bool."""
        halves: Tensor = keep.unflatten(0, (-1, 2))
        return halves.any(1)


@dataclass(frozen=True, eq=False)
class SingleWeights(Units):
    """Every weight of one matrix by itself.

    Attributes:
        n_of_m: ``(N, M)``: N stay of every M consecutive inputs of a row; None: any may go.
    """

    n_of_m: tuple[int, int] | None = None
    kind: ClassVar[UnitKind] = "weights"

    @property
    def shape(self) -> tuple[int, ...]:
        """``(out, in)``."""
        return self.members[0].linear.shape

    def norm(self, order: float, weight: Callable[[PrunableLinear], Tensor] = attrgetter("weight")) -> Tensor:
        """The absolute value."""
        return weight(self.members[0].linear).float().abs()
