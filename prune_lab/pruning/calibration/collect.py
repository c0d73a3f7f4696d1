"""Collects statistics of what the linear layers of a block read, in one pass over the calibration set."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from prune_lab.errors import RunFailed
from prune_lab.models.block import Block
from prune_lab.models.experts import ExpertLinear, moe_of
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.calibration.blocks import BlockInputs
from prune_lab.pruning.calibration.capture import Call
from prune_lab.pruning.calibration.dense import DenseValues, InputShift
from prune_lab.pruning.calibration.precision import widened
from prune_lab.pruning.calibration.routed import ReachedAllError, RoutedInputs
from prune_lab.pruning.calibration.shared import add_up_statistics
from prune_lab.pruning.calibration.statistics import Statistic, update_at
from prune_lab.utils.device import release_free_memory
from prune_lab.utils.finite import all_finite
from prune_lab.utils.products import is_slow_at

S = TypeVar("S", bound=Statistic)

Watch = Callable[[Sequence[PrunableLinear], Tensor], None]
"""Is shown the inputs ``(tokens, in)`` of each batch, and the wanted linear layers that read them."""


@dataclass
class Shifts:
    """Collects beside a statistic how far inputs have moved from those in the dense model.

    Attributes:
        dense: the values of the block's layers that were written, as they were before.
        make: makes an empty shift.
        found: by linear layer; those that read the same tensor share one.
    """

    dense: DenseValues
    make: Callable[[], InputShift]
    found: dict[str, InputShift] = field(default_factory=dict)


def collect(
    inputs: BlockInputs,
    statistic: Callable[[], S],
    linears: Sequence[PrunableLinear] | None = None,
    watch: Watch | None = None,
    watched: Sequence[PrunableLinear] = (),
    shifts: Shifts | None = None,
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
        shifts: where to put how far the inputs have moved from the dense model's, which must be walked, too; each batch
            then passes twice.

    An expert reads the tokens that are routed to it, and only of these its statistics are. One that no token was routed
    to is measured on all tokens that reach the experts of its block, and the log says so.

    Raises:
        RunFailed: inputs of the first batch are not finite.
    """
    wanted = [linear.name for linear in (inputs.block.linears if linears is None else linears)]
    seen = {*wanted, *(linear.name for linear in watched)}
    groups = [tuple(each for each in shared if each.name in seen) for shared in inputs.block.shared_inputs]
    present = [group for group in groups if group]
    collecting = _CollectingPass(inputs.block, present, wanted, statistic, watch, shifts)
    if wanted:
        collecting.run(inputs)
        if idle := collecting.idle(inputs):
            again = _CollectingPass(inputs.block, idle, wanted, statistic, watch, all_tokens=True)
            again.run(inputs)
            collecting.statistics |= again.statistics
        if watch is not None and (unseen := [group for group in collecting.unseen() if group not in idle]):
            # another process has their tokens; this one is to have seen inputs of every layer, as it writes them all
            _CollectingPass(inputs.block, unseen, (), statistic, watch, all_tokens=True).run(inputs)
    if inputs.calibration.share is not None:
        firsts = [next((each.name for each in group if each.name in wanted), None) for group in groups]
        collected = [collecting.statistics[name] for name in firsts if name is not None]
        add_up_statistics(collected, inputs.calibration.device)
        if shifts is not None:
            moved = [shifts.found[name] for name in firsts if name is not None]
            add_up_statistics(moved, inputs.calibration.device)
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


class _CollectingPass(Generic[S]):
    """The forward passes of one `collect`; each group of linear layers reads one tensor and shares one statistic.

    Of experts, groups see the tokens that are routed to theirs, or all of them (``all_tokens``).
    """

    def __init__(
        self,
        block: Block,
        groups: Sequence[tuple[PrunableLinear, ...]],
        wanted: Sequence[str],
        statistic: Callable[[], S],
        watch: Watch | None,
        shifts: Shifts | None = None,
        *,
        all_tokens: bool = False,
    ):
        self.statistics: dict[str, S] = {}  # by linear layer
        self._routed = None if (moe := moe_of(block)) is None else RoutedInputs(moe, groups, all_tokens=all_tokens)
        self._groups = [group for group in groups if not isinstance(group[0], ExpertLinear)]
        self._stations = len(self._groups) + bool(self._routed)
        self._wanted = {group: [each.name for each in group if each.name in wanted] for group in groups}
        self._statistic = statistic
        self._watch = watch
        self._shifts = shifts
        self._in_dense = False  # whether the running forward pass is that of the dense model
        self._dense_rows: dict[tuple[PrunableLinear, ...], Tensor] = {}  # of the batch
        self._reached = 0  # stations (modules that are watched), by the running forward pass
        self._rows: Callable[[Tensor], Tensor]  # of a batch's states those that are of no padding

    def idle(self, inputs: BlockInputs) -> list[tuple[PrunableLinear, ...]]:
        """The groups of experts that have seen no token, in any process; the log says how many experts they are."""
        told = any(getattr(each, "sums", True) for each in self.statistics.values())  # something is made of them
        return self._routed.idle(inputs, told=told) if self._routed else []

    def unseen(self) -> list[tuple[PrunableLinear, ...]]:
        """The groups of experts that have seen no token in this process."""
        return self._routed.unseen() if self._routed else []

    def run(self, inputs: BlockInputs) -> None:
        with ExitStack() as hooks:
            for group in self._groups:
                handle = group[0].module.register_forward_pre_hook(partial(self._observe, group))
                hooks.callback(handle.remove)
            if self._routed:
                handle = self._routed.moe.fused.register_forward_pre_hook(self._observe_experts)
                hooks.callback(handle.remove)
            wide = is_slow_at(inputs.hidden.dtype, inputs.calibration.device)
            if wide:
                hooks.enter_context(widened(inputs.block.module))
            for batch, call in inputs.batches():
                self._rows = partial(inputs.calibration.real_rows, batch)
                if self._shifts is not None:
                    assert inputs.dense is not None, "the dense model is not walked"
                    with self._shifts.dense.in_place():
                        self._in_dense = True
                        self._pass(inputs.dense, batch, call, wide=wide)
                        self._in_dense = False
                self._pass(inputs, batch, call, wide=wide)

    def _pass(self, inputs: BlockInputs, batch: slice, call: Call, *, wide: bool) -> None:
        self._reached = 0
        with suppress(ReachedAllError):
            (inputs.run_wide if wide else inputs.run)(batch, call)

    def _observe(self, group: tuple[PrunableLinear, ...], _module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        self._take(group, self._rows(args[0]))
        self._count_station()

    def _observe_experts(self, _module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        assert self._routed is not None
        for group, rows, tokens in self._routed.of_batch(args[0], args[1]):
            self._routed.note(group, self._take(group, rows, tokens))
        self._count_station()

    def _count_station(self) -> None:
        self._reached += 1
        if self._reached == self._stations:
            raise ReachedAllError

    def _take(self, group: tuple[PrunableLinear, ...], rows: Tensor, tokens: Tensor | None = None) -> int:
        """Shows a batch of inputs ``(tokens, in)`` to the statistic of a group, and to ``watch``.

        Args:
            group: linear layers that read them.
            rows: the inputs.
            tokens: which of the batch's tokens these are, ``(tokens,)`` int64; by default all.

        Returns:
            How many the statistic took, of a group that has one.
        """
        names = self._wanted[group]
        if self._in_dense:
            self._dense_rows[group] = rows
            return len(rows)
        if names and names[0] not in self.statistics:
            _check_finite(group[0], rows)
            self.statistics |= dict.fromkeys(names, self._statistic())
            if self._shifts is not None:
                self._shifts.found |= dict.fromkeys(names, self._shifts.make())
        if self._watch is not None and len(rows):
            self._watch(group, rows)
        if not names:
            return len(rows)
        if self._shifts is not None:
            self._shifts.found[names[0]].update(self._dense_rows.pop(group), rows)
        return update_at(self.statistics[names[0]], rows, tokens)


def _check_finite(linear: PrunableLinear, rows: Tensor) -> None:
    if not all_finite(rows):
        raise RunFailed(
            f"{linear.name}: the inputs have NaN or infinite values; use model.dtype=float32, or a lower sparsity"
        )
