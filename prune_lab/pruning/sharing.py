"""Linear layers that are independent of each other are solved by several processes at once, which share the results.

`assign` says who solves what, `solve_apart` does it. Where a process works alone, layers are solved in order, and each
is given out before the next is begun.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from prune_lab.models.view import PrunableLinear
from prune_lab.utils.collectives import count, gather, hand_out, rank

S = TypeVar("S")
P = TypeVar("P")


@dataclass(frozen=True, eq=False)
class Site:
    """A linear layer that is to be solved.

    Attributes:
        linear: which.
        group: a number for those that read the same inputs, for which something is prepared once.
        row_work: what a row takes, in any unit.
        group_work: what preparing the group takes, in the same unit.
        by_rows: whether the rows can be solved apart from each other.
    """

    linear: PrunableLinear
    group: int
    row_work: float
    group_work: float = 0.0
    by_rows: bool = False


@dataclass(frozen=True)
class Piece:
    """Rows of a site, ``start`` to ``stop``; ``site`` is its number."""

    site: int
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Solved:
    """What became of a linear layer.

    Attributes:
        weight: ``(out, in)``, any float type; of some rows only where it was solved by rows.
        seconds: what finding it took.
        order: of the input channels, ``(in,)`` int64, in which an N:M pattern holds.
        refined: see `prune_lab.pruning.result.LayerRow`.
    """

    weight: Tensor
    seconds: float
    order: Tensor | None = None
    refined: int | None = None


@dataclass(frozen=True, eq=False)
class RowsOf(PrunableLinear):
    """Some rows of a linear layer, for a solver that needs no others."""

    whole: PrunableLinear
    rows: slice

    @property
    def present(self) -> Tensor:
        """The rows, ``(rows, in)``; a view of the parameter."""
        return self.whole.present[self.rows]


class InTurn(Generic[S, P]):
    """What is made of the statistics of groups, one at a time; each is let go of when the next is asked for.

    Args:
        statistics: by number; the list is emptied on the way.
        prepare: makes of a statistic what solvers need.
    """

    def __init__(self, statistics: list[S], prepare: Callable[[S], P]):
        self._statistics: dict[int, S] = dict(enumerate(statistics))
        self._prepare = prepare
        self._prepared: dict[int, P] = {}

    def __getitem__(self, group: int) -> P:
        if group not in self._prepared:
            self._prepared.clear()
            self._prepared[group] = self._prepare(self._statistics.pop(group))
        return self._prepared[group]


def assign(sites: Sequence[Site], processes: int) -> list[list[Piece]]:
    """Divides sites among processes so that the work of each is as even as it can be.

    Sites that stay whole go to the process that is done with them first, the largest before all others. Rows of the
    others fill up what is left, in order, up to the lowest level at which all of them fit. A process that works on a
    group prepares it itself.

    Args:
        sites: in the order in which they are solved.
        processes: how many.

    Returns:
        For each process what it solves, in the order of the sites.
    """
    bins = [_Bin() for _ in range(processes)]
    whole = [number for number, site in enumerate(sites) if not site.by_rows]
    for number in sorted(whole, key=lambda each: -sites[each].row_work * sites[each].linear.shape[0]):
        site = sites[number]
        least = min(bins, key=lambda each: each.with_rows(site, site.linear.shape[0]))
        least.take(number, site, 0, site.linear.shape[0])
    divided = [number for number, site in enumerate(sites) if site.by_rows]
    if divided:
        low, high = (
            0.0,
            sum(each.load for each in bins)
            + sum(site.row_work * site.linear.shape[0] + site.group_work for site in sites),
        )
        for _ in range(60):
            level = (low + high) / 2
            low, high = (low, level) if _filled(bins, sites, divided, level) else (level, high)
        bins = _filled(bins, sites, divided, high) or bins
    return [sorted(each.pieces, key=lambda piece: piece.site) for each in bins]


def solve_apart(
    sites: Sequence[Site], solve: Callable[[PrunableLinear, int], Solved]
) -> Iterator[tuple[PrunableLinear, Solved]]:
    """Solves sites, each by one process or its rows by several, and yields all of them in order.

    Args:
        sites: the same in all processes, in order.
        solve: finds the weight of a linear layer, or of some of its rows (`RowsOf`), of the group with the number.
    """
    if count() == 1:
        for site in sites:
            yield site.linear, solve(site.linear, site.group)
        return
    pieces = assign(sites, count())
    own: dict[Piece, Solved] = {}
    for piece in pieces[rank()]:
        site = sites[piece.site]
        rows = site.linear.shape[0]
        part = site.linear if piece.stop - piece.start == rows else _rows(site.linear, piece)
        own[piece] = solve(part, site.group)
    notes = gather([(each.seconds, each.order is not None, each.refined) for each in own.values()])
    told = {
        piece: note
        for owned, noted in zip(pieces, notes, strict=True)
        for piece, note in zip(owned, noted, strict=True)
    }
    owner = {piece: process for process, owned in enumerate(pieces) for piece in owned}
    for number, site in enumerate(sites):
        parts = sorted((piece for piece in owner if piece.site == number), key=lambda piece: piece.start)
        weights = [_handed_out(own.get(piece), site.linear, piece, owner[piece]) for piece in parts]
        _, ordered, refined = told[parts[0]]
        order = _order(own.get(parts[0]), site.linear, owner[parts[0]]) if ordered else None
        seconds = sum(told[piece][0] for piece in parts)
        yield site.linear, Solved(weights[0] if len(parts) == 1 else torch.cat(weights), seconds, order, refined)


def hand_out_values(linear: PrunableLinear) -> None:
    """Gives all processes the weight and the bias that a linear layer has in the first one."""
    weight = linear.weight.clone(memory_format=torch.contiguous_format)
    hand_out(weight, 0)
    linear.write(weight)
    if linear.bias is not None:
        bias = linear.bias.clone()
        hand_out(bias, 0)
        linear.write_bias(bias)


class _Bin:
    """What one process has to do."""

    def __init__(self, load: float = 0.0, groups: frozenset[int] = frozenset(), pieces: Sequence[Piece] = ()):
        self.load, self.groups, self.pieces = load, groups, list(pieces)

    def with_rows(self, site: Site, rows: int) -> float:
        """The load with some rows more."""
        return self.load + site.row_work * rows + (0.0 if site.group in self.groups else site.group_work)

    def take(self, number: int, site: Site, start: int, stop: int) -> None:
        self.load = self.with_rows(site, stop - start)
        self.groups |= {site.group}
        self.pieces.append(Piece(number, start, stop))


def _filled(bins: Sequence[_Bin], sites: Sequence[Site], divided: Sequence[int], level: float) -> list[_Bin] | None:
    """The processes with the rows of divided sites besides, none above the level; ``None`` where they do not fit."""
    filled = [_Bin(each.load, each.groups, each.pieces) for each in bins]
    at = 0
    for number in divided:
        site, start = sites[number], 0
        rows = site.linear.shape[0]
        while start < rows:
            if at == len(filled):
                return None
            room = int((level - filled[at].with_rows(site, 0)) / site.row_work)
            if room > 0:
                stop = min(rows, start + room)
                filled[at].take(number, site, start, stop)
                start = stop
            if start < rows:
                at += 1
    return filled


def _rows(linear: PrunableLinear, piece: Piece) -> RowsOf:
    return RowsOf(linear.name, linear.module, linear, slice(piece.start, piece.stop))


def _handed_out(own: Solved | None, linear: PrunableLinear, piece: Piece, owner: int) -> Tensor:
    """The rows of a piece in the type of the parameter, ``(rows, in)``, from whoever has solved them."""
    if own is None:
        shape = piece.stop - piece.start, linear.shape[1]
        weight = torch.empty(shape, dtype=linear.weight.dtype, device=linear.weight.device)
    else:
        weight = own.weight.to(linear.weight).contiguous()
    hand_out(weight, owner)
    return weight


def _order(own: Solved | None, linear: PrunableLinear, owner: int) -> Tensor:
    if own is None or own.order is None:
        order = torch.empty(linear.shape[1], dtype=torch.int64, device=linear.weight.device)
    else:
        order = own.order.to(linear.weight.device).contiguous()
    hand_out(order, owner)
    return order
