"""Adds up statistics that several processes have collected, each of its own share of the calibration samples."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from prune_lab.utils.collectives import add_up, gather


def is_sum(statistic: object) -> bool:
    """Returns whether a class of statistics says what of it is to be added up.

    A class with an ``update`` of its own is not spoken for by what it inherits.
    """
    for kind in getattr(statistic, "__mro__", ()):
        if "sums" in vars(kind):
            return True
        if "update" in vars(kind):
            return False
    return False


def add_up_statistics(statistics: Iterable[object], device: torch.device) -> None:
    """Gives all processes the sums of what each has collected, in place.

    Args:
        statistics: the same kinds in the same order in all processes; see `is_sum`.
        device: of tensors that a process lacks because it has seen no token of theirs.
    """
    leaves = [leaf for statistic in statistics for leaf in _leaves(statistic, set())]
    kinds = gather([_kind(getattr(owner, name)) for owner, name in leaves])
    numbers: list[tuple[Any, str, float]] = []
    for place, (owner, name) in enumerate(leaves):
        value = getattr(owner, name)
        known = next((kind[place] for kind in kinds if kind[place] is not None), None)
        if known == "number":
            numbers.append((owner, name, value or 0))
        elif known is not None:
            shape, dtype = known
            tensor = torch.zeros(shape, dtype=getattr(torch, dtype), device=device) if value is None else value
            tensor = tensor.contiguous()
            add_up([tensor])
            setattr(owner, name, tensor)
    totals = torch.tensor([float(value) for _, _, value in numbers], dtype=torch.float64, device=device)
    add_up([totals] if numbers else [])
    for (owner, name, before), total in zip(numbers, totals.tolist(), strict=True):
        setattr(owner, name, type(before)(total))


def _leaves(statistic: Any, seen: set[int]) -> Iterator[tuple[Any, str]]:
    """The attributes of a statistic, and of statistics in it, that are to be added up, each once."""
    if id(statistic) in seen:
        return
    seen.add(id(statistic))
    if not is_sum(type(statistic)):
        raise TypeError(f"{type(statistic).__name__} does not name its sums, and so is no sum over samples")
    for name in statistic.sums:
        value = getattr(statistic, name)
        if value is None or isinstance(value, (Tensor, int, float)):
            yield statistic, name
        else:
            yield from _leaves(value, seen)


def _kind(value: Tensor | float | None) -> Any:
    """What a process has there, for the others: nothing, a number, or the shape and the type of a tensor."""
    if isinstance(value, Tensor):
        return tuple(value.shape), str(value.dtype).removeprefix("torch.")
    return None if value is None else "number"
