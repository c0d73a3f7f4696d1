"""What is removed whole: hidden neurons, attention heads, experts, blocks and their halves, or single weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import ClassVar, Literal

import torch
from torch import Tensor

from prune_lab.errors import BadInput
from prune_lab.models.experts import Moe, moe_of
from prune_lab.models.families import why_blocks_stay
from prune_lab.models.member import Member
from prune_lab.models.model import PrunableModel
from prune_lab.models.view import Attention, Block, Mlp, PrunableLinear

UnitKind = Literal["neurons", "heads", "weights", "blocks", "sub_blocks", "experts"]


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
    def reader(self) -> Member:
        """The part that reads what the units compute: of the down-projection, or of the attention's output."""
        return next(member for member in self.members if member.dim == 1)

    @property
    def parameters_each(self) -> int:
        """How many weights and biases the model has fewer without one of them."""
        total = 0
        for member in self.members:
            rows, columns = member.linear.shape
            total += rows * columns + (rows if member.bias is not None else 0)
        return total // self.count

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


@dataclass(frozen=True, eq=False)
class Neurons(Units):
    """The hidden neurons of a feed-forward network.

    Neuron i is row i of the up-projection (and of the gate) with its bias, and column i of the down-projection.
    """

    mlp: Mlp
    kind: ClassVar[UnitKind] = "neurons"


@dataclass(frozen=True, eq=False)
class Heads(Units):
    """The attention heads of a block: rows of query, key and value with their biases, columns of the output.

    Where several queries share a key and a value, they are one unit with them.
    """

    attention: Attention
    kind: ClassVar[UnitKind] = "heads"

    def select(self, keep: Tensor) -> None:
        """Removes the other heads, and tells the module how many are left."""
        super().select(keep)
        self.attention.tell(int(keep.count_nonzero()))


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


def neurons_of(block: Block) -> Neurons:
    """The neurons of a block."""
    mlp = block.mlp
    members = tuple(Member(linear, 1 if linear is mlp.down else 0) for linear in mlp.linears)
    return Neurons(f"{block.name}.neurons", members, mlp.down.shape[1], mlp)


def experts_of(block: Block) -> Experts:
    """The experts of a block.

    Raises:
        BadInput: it has none.
    """
    moe = moe_of(block)
    if moe is None:
        raise BadInput(
            f"{block.name} has no experts; leave it out by sparsity.layers, or use sparsity=neurons, heads, blocks or "
            "unstructured"
        )
    owners = [(linear, number) for number, expert in enumerate(moe.experts) for linear in expert.linears]
    return Experts(f"{block.name}.experts", _whole(owners), len(moe.experts), moe)


def heads_of(block: Block) -> Heads:
    """The heads of a block.

    Raises:
        BadInput: none can be cut out.
    """
    attention = block.attention
    if attention.joint_norm:
        raise BadInput(
            f"{block.name} normalises queries and keys of all its heads together, so that no head can go without the "
            "others changing; use sparsity=experts, blocks or unstructured"
        )
    owners = attention.owners()
    members = [Member(linear, 0, owner) for linear, owner in zip(attention.projections, owners, strict=True)]
    members.append(Member(attention.out, 1, attention.owner_of_outputs()))
    return Heads(f"{block.name}.heads", tuple(members), attention.kv_heads, attention)


def blocks_of(model: PrunableModel) -> Blocks:
    """The blocks of a model."""
    owners = [(linear, block.index) for block in model.blocks for linear in block.linears]
    return Blocks(f"{_stem(model)}.blocks", _whole(owners), len(model.blocks))


def sub_blocks_of(model: PrunableModel) -> SubBlocks:
    """The attentions and feed-forward networks of a model."""
    owners = [
        (linear, 2 * block.index + half)
        for block in model.blocks
        for half, linears in enumerate((block.attention.linears, block.feed_forward.linears))
        for linear in linears
    ]
    return SubBlocks(f"{_stem(model)}.sub_blocks", _whole(owners), 2 * len(model.blocks))


def _stem(model: PrunableModel) -> str:
    return model.blocks[0].name.rpartition(".")[0]


def _whole(owners: Sequence[tuple[PrunableLinear, int]]) -> tuple[Member, ...]:
    """Weight matrices each of which belongs to one unit."""
    return tuple(Member(linear, 0, torch.full(linear.shape[:1], owner, device="cpu")) for linear, owner in owners)


def single_weights_of(linear: PrunableLinear, n_of_m: tuple[int, int] | None = None) -> SingleWeights:
    """The weights of a matrix, and the pattern in which they go."""
    rows, columns = linear.shape
    return SingleWeights(linear.name, (Member(linear, None),), rows * columns, n_of_m)


def all_neurons(model: PrunableModel) -> list[Neurons]:
    """Those of every block that has one feed-forward network, in order."""
    return [neurons_of(block) for block in model.blocks if moe_of(block) is None]


def all_experts(model: PrunableModel) -> list[Experts]:
    """Those of every block that has experts, in order."""
    return [experts_of(block) for block in model.blocks if moe_of(block) is not None]


def all_heads(model: PrunableModel) -> list[Heads]:
    """Those of every block in which heads can go, in order."""
    return [heads_of(block) for block in model.blocks if not block.attention.joint_norm]


def removable(model: PrunableModel) -> Sequence[Units]:
    """What can be taken out of a model so that it becomes smaller."""
    depth = [] if why_blocks_stay(model.hf.config) else [blocks_of(model), sub_blocks_of(model)]
    return [*all_neurons(model), *all_heads(model), *depth, *all_experts(model)]
