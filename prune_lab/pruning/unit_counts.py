"""How many neurons, heads and values go of each layer.

Where a target removes units of several sizes (neurons with heads, with query heads, or with values), its level is a
share of their parameters, which whole units meet only nearly: they are taken as long as the next one fits
in, so that never more goes than was asked for.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from prune_lab.errors import BadInput
from prune_lab.models.model import PrunableModel
from prune_lab.models.units import Units, block_of
from prune_lab.pruning.latency.curve import TimeBudget
from prune_lab.pruning.masks import count_dropped
from prune_lab.pruning.target import Target


class OneCut(Protocol):
    """A method whose units compete in each layer (``scope`` is ``layer``), or over all layers (``model``)."""

    @property
    def scope(self) -> str: ...

    @property
    def least_kept(self) -> int: ...


def parameters_of(units: Sequence[Units]) -> int:
    """All that belong to some units."""
    return sum(each.count * each.parameters_each for each in units)


def removed_share(units: Sequence[Units], masks: Mapping[str, Tensor]) -> float:
    """The share of the parameters of some units that masks ``(count,)`` remove, by their names."""
    kept = sum(int(masks[each.name].count_nonzero()) * each.parameters_each for each in units)
    return 1 - kept / parameters_of(units)


def most_to_go(units: Units, min_units: int) -> int:
    """How many of a layer's units may go, where it keeps ``min_units`` at least."""
    return max(0, units.count - max(min_units, units.least)) // units.at_once * units.at_once


def parameters_to_go(units: Sequence[Units], target: Target, method: object, min_units: int) -> int:
    """The target's share of the parameters of units of all layers, less what of the last whole units cannot go.

    Args:
        units: of all layers.
        target: how much.
        method: whose ``scope`` an error names.
        min_units: that a layer keeps.

    Raises:
        BadInput: so much cannot go where every layer keeps some.
    """
    everything = parameters_of(units)
    asked = count_dropped(target.sparsity, everything)
    most = sum(most_to_go(each, min_units) * each.parameters_each for each in units)
    if asked - most >= min(each.at_once * each.parameters_each for each in units):
        few = min(units, key=lambda each: each.count)
        raise BadInput(
            f"one cut of {target.sparsity:.3g} over all layers is out of reach, as each of them keeps some units "
            f"({few.name}: {few.count - most_to_go(few, min_units)} of {few.count}); use {{at}}.scope=layer, or a "
            f"sparsity.level of at most {math.floor(1e3 * most / everything) / 1e3:g}",
            method,
        )
    return min(asked, most)


def check_one_cut(method: "OneCut", model: PrunableModel, target: Target) -> None:
    """Checks that a level is in reach where units of all layers compete (``scope=model``).

    Raises:
        BadInput: it is not.
    """
    competes = method.scope == "model" and target.removes_units and not target.removes_depth
    if competes and target.speedup is None:
        parameters_to_go(target.units(model), target, method, method.least_kept)


def uniform_counts(units: Sequence[Units], target: Target, min_units: int = 1) -> dict[str, int]:
    """The same share of every block.

    Where neurons go and heads or values, too, these lose ``floor(level * count)``, and neurons what is then missing to
    the level in the parameters of their block. Layers with a budget of their own lose that. Of a target of time it is
    the lowest level, in thousandths, that reaches it.

    Args:
        units: of all layers, those of a block together.
        target: how much.
        min_units: that a layer keeps.

    Returns:
        How many go, by the name of the units.

    Raises:
        BadInput: a speed cannot be reached.
    """
    if target.time is not None and not target.budget:
        return _counts_in_time(units, target, target.time, min_units)
    counts = {each.name: min(target.dropped_units(each), most_to_go(each, min_units)) for each in units}
    if not target.counts_parameters or target.budget:
        return counts
    for _, group in groupby(units, key=block_of):
        *others, neurons = of_block = sorted(group, key=lambda each: each.kind == "neurons")
        left = count_dropped(target.sparsity, parameters_of(of_block))
        left -= sum(counts[each.name] * each.parameters_each for each in others)
        counts[neurons.name] = min(left // neurons.parameters_each, most_to_go(neurons, min_units))
    return counts


def counts_by_score(
    units: Sequence[Units], scores: Mapping[str, Tensor], target: Target, method: object, min_units: int = 1
) -> dict[str, int]:
    """Units of all layers compete: those with the lowest scores go, as long as their parameters fit into the budget.

    The budget is ``target.sparsity`` of the parameters of all units, so one kind alone loses that share of its number.
    Of a target of time as many go as it takes until that is reached.

    Args:
        units: of all layers.
        scores: by their name, ``(count,)``, any float type; comparable between layers.
        target: how much.
        method: whose ``scope`` an error names.
        min_units: that a layer keeps, those with the highest scores.

    Returns:
        How many go, by the name of the units.

    Raises:
        BadInput: so much cannot go where every layer keeps ``min_units``, or a speed cannot be reached.
    """
    order = _order(units, scores, min_units)
    if target.time is not None:
        return _dropped_in_time(units, order, target, target.time)
    return _taken(units, order, parameters_to_go(units, target, method, min_units))


def counts_within(
    units: Sequence[Units], scores: Mapping[str, Tensor], sparsity: float, min_units: int
) -> dict[str, int]:
    """The same for a share of the parameters, of which less goes where every layer has to keep ``min_units``."""
    return _taken(units, _order(units, scores, min_units), count_dropped(sparsity, parameters_of(units)))


def _order(units: Sequence[Units], scores: Mapping[str, Tensor], min_units: int) -> list[int]:
    """The numbers of the layers whose units go next, one after the other: those that may go, by their scores."""
    lowest = []
    for each in units:  # of those that go together the mean decides
        at_once = scores[each.name].double().cpu().unflatten(0, (each.at_once, -1)).sort().values.mean(0)
        lowest.append(at_once[: most_to_go(each, min_units) // each.at_once])
    owner = torch.cat([torch.full((len(score),), index) for index, score in enumerate(lowest)])
    found: list[int] = owner[torch.cat(lowest).argsort(stable=True)].tolist()
    return found


def _taken(units: Sequence[Units], order: Sequence[int], budget: int) -> dict[str, int]:
    """Takes units of the layers in ``order`` that fit into a number of parameters: how many of each."""
    sizes, counts = [each.at_once * each.parameters_each for each in units], [0] * len(units)
    for index in order:
        if sizes[index] <= budget:
            budget -= sizes[index]
            counts[index] += units[index].at_once
    return {each.name: count for each, count in zip(units, counts, strict=True)}


def _counts_in_time(units: Sequence[Units], target: Target, time: TimeBudget, min_units: int) -> dict[str, int]:
    least, fastest = float("inf"), 0.0
    for thousandths in range(1000):
        level = thousandths / 1000
        of_level = replace(target, level=level, speedup=None, time=None)
        counts = uniform_counts(units, of_level, min_units)
        seconds = time.of(counts)
        if time.fits(seconds):
            return counts
        if seconds < least:
            least, fastest = seconds, level
    raise time.out_of_reach(target, least, f"all blocks lose {fastest:.1%}")


def _dropped_in_time(units: Sequence[Units], owners: Sequence[int], target: Target, time: TimeBudget) -> dict[str, int]:
    """Drops units of the layers in ``owners``, one after the other, until the time is reached."""
    counts = {each.name: 0 for each in units}
    seconds = least = time.dense
    for owner in owners:
        name = units[owner].name
        curve, gone = time.curves[name], counts[name]
        seconds += curve.at(curve.count - gone - 1) - curve.at(curve.count - gone)
        counts[name] += 1
        least = min(least, seconds)
        if time.fits(seconds):
            return counts
    raise time.out_of_reach(target, least, "all units but those that every layer keeps")
