"""Compares what a pruning removed with what it was asked to remove."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prune_lab.errors import RunFailed
from prune_lab.models.model import PrunableModel
from prune_lab.models.units import Units
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.latency.curve import TimeBudget
from prune_lab.pruning.masks import count_dropped, sparsity_of
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.result import PruningResult
from prune_lab.pruning.target import Target
from prune_lab.pruning.unit_counts import removed_share, uniform_counts

logger = logging.getLogger(__name__)

_COARSE = 0.1
"""A total that misses the level by more than this share of it is worth a warning."""
_BY_CHANCE = 0.01
"""So large a share of a layer may be zero besides: a value that a method computes can be too small for float16."""


@dataclass(frozen=True)
class _Count:
    """Of one layer, or of all together: how many weights, neurons, heads or parameters went, and were to go."""

    name: str
    entries: int
    gone: int
    least: int
    most: int


def check_reached(
    model: PrunableModel, target: Target, method: Method, result: PruningResult, before: Mapping[str, Tensor]
) -> None:
    """Checks that as much went of every layer as the target asks for.

    Zeros that were there before may exceed that, and come on top where they need not be those that go. A method that
    compares weights within rows may fall short by less than one a row; one that chooses over the whole model is judged
    by the total; one whose level follows from other settings, by what it says of itself (`Method.reaches`).

    Args:
        model: pruned.
        target: with the budget of each layer.
        method: that pruned it.
        result: what it said.
        before: keep-masks ``(out, in)`` of the linear layers that had zeros before, by name.

    Raises:
        RunFailed: less or more went; the message names the layer.
    """
    if target.time is not None:
        _check_time(model, target, target.time, method, result)
        return
    if method.reaches == "nothing":
        return
    counts = list(
        _units(model, target, method, result, before)
        if target.removes_units
        else _weights(model, target, result, before)
    )
    if method.allocation_conflict is not None:
        counts = [_total(counts, target, method.least_kept)]
        if target.counts_parameters:  # whole units meet it only nearly
            largest = max(each.parameters_each for each in target.units(model))
            counts = [replace(counts[0], least=min(counts[0].least, counts[0].most - largest))]
    for count in counts:
        short = count.gone < count.least and method.reaches != "at most"
        if short or (count.gone > count.most and method.reaches != "at least"):
            raise RunFailed(
                f"{count.name}: {count.gone} of {count.entries} {_kind(target)} went "
                f"({count.gone / count.entries:.4%}), where the target is {target.sparsity:.4%} "
                f"({count.least} to {count.most}); the method's numbers are not to be trusted here: use "
                "model.dtype=float32, or settings nearer to its defaults",
                method,
            )
    if target.removes_units and not target.removes_depth:
        _warn_of_coarse(counts, target, min(target.units(model), key=lambda each: each.count), method)


def _check_time(model: PrunableModel, target: Target, time: TimeBudget, method: Method, result: PruningResult) -> None:
    """Checks that the predicted seconds are those that are allowed, or fewer."""
    seconds = time.of({each.name: int((~result.masks[each.name]).count_nonzero()) for each in target.units(model)})
    if not time.fits(seconds):
        raise RunFailed(
            f"{seconds:.4g} s are predicted of the pruned model, where {time.seconds:.4g} s were allowed "
            f"(sparsity.speedup={target.speedup:g}); the method does not go by the latency table: use method=ziplm or "
            "flap",
            method,
        )


def sparsity_in_range(model: PrunableModel, target: Target, result: PruningResult) -> float:
    """The share of zeros among the weights that the target covers, or of the units that went.

    Of units of several sizes, their share of the parameters. Those of low-rank parts beside weights count as kept.
    """
    if target.counts_parameters:
        return removed_share(target.units(model), result.masks)
    if target.removes_units:
        units = target.units(model)
        return sparsity_of({each.name: result.masks[each.name][target.span(each)] for each in units})
    entries = kept = 0
    # one after the other: all masks at once, a byte an entry, are as large as half the model
    for each in model.in_turn(target.linears(model)):
        mask = result.masks.get(each.name, each.weight)
        entries, kept = entries + mask.numel(), kept + int(mask.count_nonzero()) + _beside(result, each.name)
    return 1 - kept / entries if entries else 0.0


def _beside(result: PruningResult, name: str) -> int:
    """The parameters of the low-rank part beside a weight."""
    return result.pairs[name].parameters if name in result.pairs else 0


def _warn_of_coarse(counts: Sequence[_Count], target: Target, few: Units, method: Method) -> None:
    """Says so where layers have so few units that whole ones are far from the level: 25 % of 3 heads is none.

    Far from it is a tenth of the level less, or more than twice as much that stays as was asked for.
    """
    gone, entries = sum(count.gone for count in counts), sum(count.entries for count in counts)
    if target.sparsity - gone / entries > min(_COARSE * target.sparsity, 1 - target.sparsity):
        whole = "whole ones go" if few.at_once == 1 else f"{few.at_once} go at a time, one of each key"
        remedy = (
            ", or choose among those of all layers, by a method with method.scope=model or global"
            if method.allocation_conflict is None  # it does not yet
            else ""
        )
        why = (
            "with its settings the method may leave more than asked for, as its description says"
            if method.reaches == "at most"
            else f"a layer has as few as {few.count} units, of which {whole}, rounded down, and some stay; give "
            f"another sparsity.level{remedy}"
        )
        logger.warning(
            "%.1f %% of the %s went, where %.1f %% were asked for: %s",
            100 * gone / entries, _kind(target), 100 * target.sparsity, why,
        )  # fmt: skip


def _kind(target: Target) -> str:
    if target.counts_parameters:
        return "parameters"
    return target.kind.replace("_", "-") if target.removes_units else "weights"


def _units(
    model: PrunableModel, target: Target, method: Method, result: PruningResult, before: Mapping[str, Tensor]
) -> Iterator[_Count]:
    def kept(linear: PrunableLinear) -> Tensor:
        return before[linear.name] if linear.name in before else torch.ones(linear.shape)

    units = target.units(model)
    asked = {} if target.removes_depth else uniform_counts(units, target, method.least_kept)
    for each in units:
        span, mask = target.span(each), result.masks[each.name]
        entries = _entries(each, target)
        gone = len(mask) - int(mask.count_nonzero())
        least = asked.get(each.name, count_dropped(target.sparsity, entries))
        zero = int((each.norm(1, kept)[span] == 0).count_nonzero())  # all of the unit's weights were, before
        count = _Count(each.name, entries, gone, least, max(least, zero))
        yield _parameters(each, count) if target.counts_parameters else count


def _entries(units: Units, target: Target) -> int:
    return len(range(units.count)[target.span(units)])


def _parameters(units: Units, count: _Count) -> _Count:
    """The same in parameters, which units of several sizes have in common."""
    numbers = (number * units.parameters_each for number in (count.entries, count.gone, count.least, count.most))
    return _Count(count.name, *numbers)


def _weights(
    model: PrunableModel, target: Target, result: PruningResult, before: Mapping[str, Tensor]
) -> Iterator[_Count]:
    for linear in model.in_turn(target.linears(model)):
        kept = before.get(linear.name)
        zero = None if kept is None else ~kept
        order = result.channel_orders.get(linear.name)
        least, most = _of_groups(linear, target, zero, order) if target.n_of_m else _of_level(linear, target, zero)
        entries = linear.weight.numel()
        gone = entries - int(linear.weight.count_nonzero())
        if not target.n_of_m:  # a pattern leaves no room for the parameters of a low-rank part
            gone -= _beside(result, linear.name)
        by_chance = max(len(linear.weight), int(_BY_CHANCE * entries))
        yield _Count(linear.name, entries, gone, least, most + by_chance)


def _of_level(linear: PrunableLinear, target: Target, zero: Tensor | None) -> tuple[int, int]:
    """The fewest and the most weights that may go of a layer."""
    rows, columns = linear.shape
    asked = target.dropped(linear.name, rows * columns)
    least = asked if linear.name in target.budget else rows * count_dropped(target.of(linear.name), columns)
    zeros = 0 if zero is None else int(zero.count_nonzero())
    return least, max(asked, zeros) if target.keep_zeros else asked + zeros


def _of_groups(linear: PrunableLinear, target: Target, zero: Tensor | None, order: Tensor | None) -> tuple[int, int]:
    """The same for an N:M pattern, in an order of the channels; groups with more zeros than ``M - N`` keep them."""
    assert target.n_of_m is not None
    n, m = target.n_of_m
    asked = linear.weight.numel() // m * (m - n)
    if zero is None:
        return asked, asked
    if not target.keep_zeros:
        return asked, asked + int(zero.count_nonzero())
    ordered = zero if order is None else zero[:, order]
    return asked, int(ordered.unflatten(1, (-1, m)).sum(-1).clamp_min(m - n).sum())


def _total(counts: list[_Count], target: Target, least_kept: int) -> _Count:
    """All layers together, of each of which some stays."""
    entries, most = sum(each.entries for each in counts), sum(each.most for each in counts)
    least = sum(min(each.least, each.entries - least_kept) for each in counts)
    gone = sum(each.gone for each in counts)
    return _Count("all layers together", entries, gone, least, max(most, count_dropped(target.sparsity, entries)))
