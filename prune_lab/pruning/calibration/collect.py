"""Collects statistics of what the linear layers of a block read, in one pass over the calibration set."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from prune_lab.errors import RunFailed
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.calibration.blocks import BlockInputs
from prune_lab.pruning.calibration.precision import is_slow_at, widened
from prune_lab.pruning.calibration.shared import add_up_statistics
from prune_lab.pruning.calibration.statistics import Statistic
from prune_lab.utils.device import release_free_memory
from prune_lab.utils.finite import all_finite

S = TypeVar("S", bound=Statistic)

Watch = Callable[[Sequence[PrunableLinear], Tensor], None]
"""Is shown the inputs ``(tokens, in)`` of each batch, and the wanted linear layers that read them."""


def collect(
    inputs: BlockInputs,
    statistic: Callable[[], S],
    linears: Sequence[PrunableLinear] | None = None,
    watch: Watch | None = None,
    watched: Sequence[PrunableLinear] = (),
) -> dict[str, S]:
    """Runs the block over the calibration set and returns a statistic per linear layer, by the layer's name.

    Linear layers that read the same tensor (query, key and value; gate and up) share one object. Each forward pass ends
    at the last linear layer that is asked for: what comes after it would be thrown away. Where the processor is slow at
    half precision, the pass runs in float32. Where processes have a share of the samples each, all get the sums over
    all samples.

    Args:
        inputs: of the block.
        statistic: makes an empty one.
        linears: which, of the block; all by default.
        watch: sees every batch of inputs too.
        watched: linear layers that only ``watch`` is to see.

    Raises:
        RunFailed: inputs of the first batch are not finite.
    """
    wanted = [linear.name for linear in (inputs.block.linears if linears is None else linears)]
    seen = {*wanted, *(linear.name for linear in watched)}
    groups = [tuple(each for each in shared if each.name in seen) for shared in inputs.block.shared_inputs]
    collecting = _CollectingPass([group for group in groups if group], wanted, statistic, watch)
    if wanted:
        collecting.run(inputs)
    if inputs.calibration.share is not None:
        firsts = [next((each.name for each in group if each.name in wanted), None) for group in groups]
        collected = [collecting.statistics[name] for name in firsts if name is not None]
        add_up_statistics(collected, inputs.calibration.device)
    release_free_memory(inputs.calibration.device)  # the activations; solvers need room next
    return {name: collecting.statistics[name] for name in wanted}


def by_statistic(
    statistics: dict[str, Any], linears: tuple[PrunableLinear, ...]
) -> Iterator[tuple[Any, list[PrunableLinear]]]:
    """Yields each distinct statistic with the layers that share it.

    ``statistics`` is emptied on the way, to free memory.
    """
    while statistics:
        statistic = next(iter(statistics.values()))
        shared = [linear for linear in linears if statistics.get(linear.name) is statistic]
        for linear in shared:
            del statistics[linear.name]
        yield statistic, shared


class _ReachedAllError(Exception):
    """Ends a forward pass from inside a hook."""


class _CollectingPass(Generic[S]):
    """The forward passes of one `collect`; each group of linear layers reads one tensor and shares one statistic."""

    def __init__(
        self,
        groups: Sequence[tuple[PrunableLinear, ...]],
        wanted: Sequence[str],
        statistic: Callable[[], S],
        watch: Watch | None,
    ):
        self.statistics: dict[str, S] = {}  # by linear layer
        self._groups = groups
        self._wanted = {group: [each.name for each in group if each.name in wanted] for group in groups}
        self._statistic = statistic
        self._watch = watch
        self._reached = 0  # groups, by the running forward pass

    def run(self, inputs: BlockInputs) -> None:
        with ExitStack() as hooks:
            for group in self._groups:
                handle = group[0].module.register_forward_pre_hook(partial(self._observe, group))
                hooks.callback(handle.remove)
            run = inputs.run
            if is_slow_at(inputs.hidden.dtype, inputs.calibration.device):
                hooks.enter_context(widened(inputs.block.module))
                run = inputs.run_wide
            for batch, call in inputs.batches():
                self._reached = 0
                with suppress(_ReachedAllError):
                    run(batch, call)

    def _observe(self, group: tuple[PrunableLinear, ...], _module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        rows = args[0].flatten(0, -2)  # (tokens, in)
        names = self._wanted[group]
        if names and names[0] not in self.statistics:
            _check_finite(group[0], rows)
            self.statistics |= dict.fromkeys(names, self._statistic())
        if self._watch is not None:
            self._watch(group, rows)
        if names:
            self.statistics[names[0]].update(rows)
        self._reached += 1
        if self._reached == len(self._groups):
            raise _ReachedAllError


def _check_finite(linear: PrunableLinear, rows: Tensor) -> None:
    if not all_finite(rows):
        raise RunFailed(
            f"{linear.name}: the inputs have NaN or infinite values; use model.dtype=float32, or a lower sparsity"
        )
