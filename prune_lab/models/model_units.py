"""Finds the units of a model: neurons, heads, values, experts, blocks and their halves, or single weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from prune_lab.errors import BadInput
from prune_lab.models.block import Block
from prune_lab.models.experts import moe_of
from prune_lab.models.families import why_blocks_stay
from prune_lab.models.head_units import Heads, Keys, QueryHeads, Values
from prune_lab.models.member import Member
from prune_lab.models.model import PrunableModel
from prune_lab.models.units import (
    Blocks,
    Experts,
    Neurons,
    SingleWeights,
    SubBlocks,
    Units,
)
from prune_lab.models.view import Attention, PrunableLinear


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
    _check_heads_can_go(block)
    owners = attention.owners()
    members = [Member(linear, 0, owner) for linear, owner in zip(attention.projections, owners, strict=True)]
    members.append(Member(attention.out, 1, attention.owner_of_outputs()))
    return Heads(f"{block.name}.heads", tuple(members), attention.kv_heads, attention)


def query_heads_of(block: Block) -> QueryHeads:
    """The heads of queries of a block.

    Raises:
        BadInput: none can be cut out, or each has a key of its own.
    """
    attention = block.attention
    _check_heads_can_go(block)
    if not attention.shares_keys:
        raise BadInput(
            f"{block.name} has a key for each query, so that no query can go without its key; use sparsity=heads, or "
            "width in the place of neurons_query_heads"
        )
    head, per_key = torch.arange(attention.heads, device="cpu"), attention.queries_per_key
    columns = torch.tensor(attention.values, device="cpu").repeat_interleave(per_key)
    rows = torch.tensor([len(places) for places in attention.key_places], device="cpu").repeat_interleave(per_key)
    members = (
        Member(attention.projections[0], 0, head.repeat_interleave(rows)),
        Member(attention.out, 1, head.repeat_interleave(columns)),
    )
    return QueryHeads(f"{block.name}.query_heads", members, attention.heads, attention)


def _check_heads_can_go(block: Block) -> None:
    if block.attention.joint_norm:
        raise BadInput(
            f"{block.name} normalises queries and keys of all its heads together, so that no head can go without the "
            "others changing; use sparsity=experts, blocks or unstructured"
        )


def values_of(block: Block) -> Values:
    """The values of a block's attention."""
    attention = block.attention
    of_heads = torch.arange(sum(attention.values), device="cpu").split(attention.values)
    columns = torch.cat([each.repeat(attention.queries_per_key) for each in of_heads])
    members = Member(attention.projections[-1], 0, _values_in_rows(attention)), Member(attention.out, 1, columns)
    head = torch.arange(attention.kv_heads, device="cpu").repeat_interleave(
        torch.tensor(attention.values, device="cpu")
    )
    return Values(f"{block.name}.values", members, len(head), attention, head)


def keys_of(block: Block) -> Keys:
    """The rows of queries and keys of a block's attention, or pairs of them.

    Raises:
        BadInput: none can be cut out.
    """
    attention = block.attention
    if attention.free_keys is None:
        raise BadInput(
            f"{block.name} normalises queries and keys, or computes them in one matrix, so that no single rows of them "
            "can go; use sparsity=values or neurons_values"
        )
    apart = attention.head_dim // 2 if attention.free_keys == "pairs" else attention.head_dim
    every: dict[tuple[int, int], list[int]] = {}  # the places of each unit, by its head and the first of them
    for head, places in enumerate(attention.key_places):
        for place in places:
            every.setdefault((head, place % apart), []).append(place)
    number = {unit: index for index, unit in enumerate(every)}
    of_rows = [
        torch.tensor([number[head, place % apart] for place in places], dtype=torch.int64, device="cpu")
        for head, places in enumerate(attention.key_places)
    ]
    query = torch.cat([rows.repeat(attention.queries_per_key) for rows in of_rows])
    members = Member(attention.projections[0], 0, query), Member(attention.projections[1], 0, torch.cat(of_rows))
    of_head = torch.tensor([head for head, _ in every], dtype=torch.int64, device="cpu")
    return Keys(f"{block.name}.keys", members, len(every), attention, of_head, tuple(map(tuple, every.values())))


def _values_in_rows(attention: Attention) -> Tensor:
    """Which value each row of the last projection computes, -1: none: ``(rows,)`` int64."""
    owner, counts = attention.owners()[-1], attention.values
    ends = [len(owner) - sum(counts[head + 1 :]) for head in range(len(counts))]
    if attention.layout == "heads":  # the values of a head come after its query and its key
        ends = [sum(counts[: head + 1]) + 2 * attention.head_dim * (head + 1) for head in range(len(counts))]
    found = torch.full_like(owner, -1)
    for number, (end, count) in enumerate(zip(ends, counts, strict=True)):
        found[end - count : end] = torch.arange(count, device="cpu") + sum(counts[:number])
    return found


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


def all_query_heads(model: PrunableModel) -> list[QueryHeads]:
    """Those of every block in which queries share keys and can go, in order."""
    attentions = ((block, block.attention) for block in model.blocks)
    return [query_heads_of(block) for block, each in attentions if each.shares_keys and not each.joint_norm]


def all_values(model: PrunableModel) -> list[Values]:
    """Those of every block, in order."""
    return [values_of(block) for block in model.blocks]


def all_keys(model: PrunableModel) -> list[Keys]:
    """Those of every block in which some can go, in order; a block may have lost all of them."""
    found = (keys_of(block) for block in model.blocks if block.attention.free_keys is not None)
    return [keys for keys in found if keys.count]


def removable(model: PrunableModel) -> Sequence[Units]:
    """What can be taken out of a model so that it becomes smaller."""
    depth = [] if why_blocks_stay(model.hf.config) else [blocks_of(model), sub_blocks_of(model)]
    of_heads = [*all_heads(model), *all_query_heads(model), *all_values(model), *all_keys(model)]
    return [*all_neurons(model), *of_heads, *depth, *all_experts(model)]
