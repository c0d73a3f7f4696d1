"""Selects which weights of a layer are kept, from scores of all of them.

Weights that are zero already are given as ``zero``, ``(out, in)`` bool or ``None``; they are the first to go, whatever
their scores, and count as part of the level. Where there are more of them than the level asks for, all of them go.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prune_lab.errors import RunFailed
from prune_lab.models.units import Units
from prune_lab.pruning.masks import (
    Masks,
    count_dropped,
    keep_all_but,
    keep_all_but_counts,
    keep_each_of_all,
    keep_n_of_m,
)
from prune_lab.pruning.target import Target
from prune_lab.pruning.unit_counts import counts_by_score, uniform_counts

SCOPES = ("layer", "row")
"""Where the weights of a layer may compete."""


def keep_in_scope(scores: Tensor, target: Target, name: str, scope: str, zero: Tensor | None = None) -> Tensor:
    """Drops the lowest scores ``(out, in)`` of a layer or of every row, or of every group for an N:M target."""
    return (keep_in_layer if scope == "layer" else keep_in_rows)(scores, target, name, zero)


def keep_units(
    units: Sequence[Units], scores: Mapping[str, Tensor], target: Target, scope: str, method: object
) -> Masks:
    """Drops the neurons and heads with the lowest scores ``(count,)``: of every block, or of all blocks together.

    Blocks and sub-blocks compete with those of the target's range, whatever the scope.

    Raises:
        BadInput: one cut for the model (``scope="model"``) would leave a block without any.
    """
    if target.removes_depth:
        return Masks({name: keep_blocks(score, target) for name, score in scores.items()})
    counted = uniform_counts(units, target) if scope == "layer" else counts_by_score(units, scores, target, method)
    return Masks({each.name: drop_lowest(each, scores[each.name], counted[each.name]) for each in units})


def drop_lowest(units: Units, scores: Tensor, dropped: int) -> Tensor:
    """Drops the units of a layer with the lowest scores ``(count,)``, equally many of each part that loses some.

    Args:
        units: of the layer.
        scores: of them, any float type.
        dropped: a multiple of ``units.at_once``.

    Returns:
        The keep-mask, of the shape of the scores and on their device.
    """
    parts = scores.unflatten(0, (units.at_once, -1))
    return keep_all_but(parts, dropped // units.at_once).flatten()


def keep_blocks(scores: Tensor, target: Target) -> Tensor:
    """Drops the blocks or sub-blocks with the lowest scores ``(count,)``, of those in the target's range."""
    per_block = 1 if target.kind == "blocks" else 2
    first, end = target.layers or (0, len(scores) // per_block)
    keep = torch.ones(len(scores), dtype=torch.bool)
    span = scores[first * per_block : end * per_block]
    keep[first * per_block : end * per_block] = keep_all_but(span, count_dropped(target.sparsity, len(span)))
    return keep


def keep_over_all(
    scores: Mapping[str, Tensor], sparsity: float, min_units: int | None, method: object
) -> dict[str, Tensor]:
    """Drops the lowest scores of all layers together, but leaves each its ``min_units`` highest.

    Args:
        scores: of the layers, any shapes.
        sparsity: share of all entries to drop.
        min_units: that a layer keeps; ``None``: it may lose all of them.
        method: whose ``scope`` and ``min_units`` an error names.

    Returns:
        The keep-masks, of the shapes of the scores and on their device.

    Raises:
        RunFailed: a layer would keep nothing.
    """
    if min_units is not None:
        scores = {name: _protect_highest(score, min_units) for name, score in scores.items()}
    masks = dict(keep_each_of_all(scores, sparsity))
    for name, keep in masks.items():
        if not bool(keep.any()):
            more = "{at}.min_units=1 (or more), " if min_units is None else ""
            raise RunFailed(
                f"{name}: one cut of {sparsity:.3g} over all layers leaves none of its {keep.numel()} units; "
                f"use {more}{{at}}.scope=layer, or a lower sparsity.level",
                method,
            )
    return masks


def _protect_highest(scores: Tensor, count: int) -> Tensor:
    flat = scores.flatten().clone()
    flat[flat.topk(min(count, len(flat))).indices] = torch.inf
    return flat.view_as(scores)


def keep_in_groups(scores: Tensor, n: int, m: int, zero: Tensor | None = None) -> Tensor:
    """Keeps the ``n`` highest of every ``m`` consecutive scores ``(out, in)``, but none that is zero."""
    keep = keep_n_of_m(_zeros_lowest(scores, zero), n, m)
    return keep if zero is None else keep & ~zero


def keep_of_layer(scores: Tensor, dropped: int, zero: Tensor | None = None) -> Tensor:
    """Drops the ``dropped`` lowest scores ``(out, in)`` of a whole layer."""
    if zero is not None:
        dropped = max(dropped, int(zero.count_nonzero()))
    return keep_all_but(_zeros_lowest(scores, zero).flatten(), dropped).view_as(scores)


def keep_in_layer(scores: Tensor, target: Target, name: str, zero: Tensor | None = None) -> Tensor:
    """Drops the lowest scores ``(out, in)`` of a whole layer, or of every group for an N:M target."""
    if target.n_of_m:
        return keep_in_groups(scores, *target.n_of_m, zero)
    return keep_of_layer(scores, target.dropped(name, scores.numel()), zero)


def keep_in_rows(scores: Tensor, target: Target, name: str, zero: Tensor | None = None) -> Tensor:
    """Drops the lowest scores ``(out, in)`` of every row, or of every group for an N:M target.

    Every row loses ``floor(s * in)``. A linear layer with a budget of its own loses exactly ``target.dropped`` all
    told: rows lose equally many, but for the remainder, which goes from the rows whose next score is least of their
    mean score. Where rows have zeros already, those with more of them than the others can lose keep them all, and the
    total is still that of the layer.
    """
    if target.n_of_m:
        return keep_in_groups(scores, *target.n_of_m, zero)
    each, more = count_dropped(target.of(name), scores.shape[1]), 0
    if name in target.budget:
        each, more = divmod(target.dropped(name, scores.numel()), len(scores))
    if zero is None:
        keep, open_rows = keep_all_but(scores, each), None
    else:
        counts, more = counts_of_rows(zero.sum(1), each * len(scores) + more)
        keep, open_rows = keep_all_but_counts(_zeros_lowest(scores, zero), counts), counts == counts.min()
    if more:
        _drop_next(keep, scores.float(), more, open_rows)
    return keep


def counts_of_rows(present: Tensor, total: int) -> tuple[Tensor, int]:
    """Divides a number of weights among rows that have lost some already, so that all lose as equally as they can.

    Args:
        present: the zeros of each row, ``(rows,)`` int64.
        total: that go of all rows together.

    Returns:
        How many go of each row, at least its zeros, ``(rows,)``: equally many of all that have fewer zeros; and how
        many of those rows are to lose one more. Nothing more goes where the zeros are ``total`` or more already.
    """
    low, high = 0, total // len(present)  # the zeros of a row may only lower what is left for the others
    while low < high:
        middle = (low + high + 1) // 2
        if int(present.clamp_min(middle).sum()) <= total:
            low = middle
        else:
            high = middle - 1
    counts = present.clamp_min(low)
    return counts, max(0, total - int(counts.sum()))


def _zeros_lowest(scores: Tensor, zero: Tensor | None) -> Tensor:
    return scores if zero is None else scores.masked_fill(zero, -torch.inf)


def _drop_next(keep: Tensor, scores: Tensor, count: int, rows: Tensor | None = None) -> None:
    """Drops one more weight from each of ``count`` rows of ``keep``, ``(out, in)``, in place; of ``rows`` if given."""
    following = scores.masked_fill(~keep, torch.inf).min(1)
    relative = following.values / scores.mean(1).clamp_min(torch.finfo(scores.dtype).tiny)
    if rows is not None:
        relative = relative.masked_fill(~rows, torch.inf)
    chosen = relative.argsort(stable=True)[:count]
    keep[chosen, following.indices[chosen]] = False
