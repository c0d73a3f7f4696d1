"""One block while it is pruned: through this methods collect, write, and have reported what they did."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from prune_lab.models.adapter import Pair
from prune_lab.models.units import Units
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.calibration.blocks import BlockInputs
from prune_lab.pruning.calibration.collect import Shifts, collect
from prune_lab.pruning.calibration.dense import DenseValues, InputShift
from prune_lab.pruning.calibration.held_out import HeldOut, SplitStatistic
from prune_lab.pruning.calibration.output_error import OutputErrors
from prune_lab.pruning.calibration.statistics import Nothing, Record, Statistic
from prune_lab.pruning.dense_targets import Aim
from prune_lab.pruning.result import LayerRow, PruningResult
from prune_lab.pruning.sharing import hand_out_values
from prune_lab.pruning.target import Target
from prune_lab.utils.collectives import count
from prune_lab.utils.device import release_free_memory

S = TypeVar("S", bound=Statistic)


class BlockPruning:
    """One block while it is pruned.

    Args:
        inputs: the block, and the calibration set as it reaches it.
        target: how much goes.
        result: where masks and rows of the block are recorded.
        seed: for methods that choose at random.
    """

    def __init__(self, inputs: BlockInputs, target: Target, result: PruningResult, seed: int = 0):
        self.block = inputs.block
        self.inputs = inputs
        self.target = target
        self.result = result
        self.seed = seed
        self._held = HeldOut.of(inputs.calibration, 0)
        self._errors = OutputErrors(inputs)
        self._records: dict[str, Record] = {}  # by linear layer, of the next pass that collects its inputs
        self._dense = DenseValues()  # with propagate=dense, or where the dense model is walked, too
        self._shifts: dict[str, InputShift] = {}  # by linear layer, with dense_targets
        self._sparse = DenseValues()  # of weights that have a low-rank part beside them; parameters hold the sums
        self._own: set[PrunableLinear] = set()  # written, and each process has found the weight by itself

    def parts(self) -> tuple[tuple[PrunableLinear, ...], ...]:
        """Groups the linear layers that are calibrated at once: all of the block, or those that are reached at once."""
        return self.inputs.parts()

    def hold_out(self, share: float) -> HeldOut:
        """Holds tokens out of all statistics that are collected from now on; a larger share of before stays.

        Args:
            share: as `HeldOut.of` has it.
        """
        wanted = HeldOut.of(self.inputs.calibration, share)
        if wanted.count > self._held.count:
            self._held = wanted
        return self._held

    def collect_split(
        self,
        statistic: Callable[[], S],
        linears: Sequence[PrunableLinear] | None = None,
        *,
        aimed: bool = False,
    ) -> dict[str, SplitStatistic[S]]:
        """Collects a statistic of the tokens that are not held out, and beside it what judges weights on the others."""
        split = partial(SplitStatistic, statistic, self._held, self.inputs.calibration)
        return self._collect(split, linears, aimed=aimed)

    def collect(
        self,
        statistic: Callable[[], S],
        linears: Sequence[PrunableLinear] | None = None,
        sampled: Sequence[PrunableLinear] = (),
        *,
        aimed: bool = False,
    ) -> dict[str, S]:
        """Collects as `prune_lab.pruning.calibration.collect.collect` does, and takes error samples on the way.

        Tokens that are held out are left out.

        Args:
            statistic: makes an empty one.
            linears: which, of the block; all by default.
            sampled: linear layers of which only error samples are taken, as they will be written too.
            aimed: whether `aim` is to say what the layers are fitted to, with ``dense_targets``.
        """
        if not self._held:
            return self._collect(statistic, linears, sampled, aimed=aimed)
        split = partial(SplitStatistic, statistic, self._held, self.inputs.calibration, judged=False)
        return {name: found.fitted for name, found in self._collect(split, linears, sampled, aimed=aimed).items()}

    def _collect(
        self,
        statistic: Callable[[], S],
        linears: Sequence[PrunableLinear] | None,
        sampled: Sequence[PrunableLinear] = (),
        *,
        aimed: bool,
    ) -> dict[str, S]:
        names = {linear.name for linear in (self.block.linears if linears is None else linears)}
        records = {name: self._records.pop(name) for name in names & self._records.keys()}

        def watch(readers: Sequence[PrunableLinear], rows: Tensor) -> None:
            self._errors.sample(readers, rows)
            for linear in readers:
                if linear.name in records:
                    records[linear.name].update(rows)

        if not aimed or self.inputs.calibration.dense_targets == 0:
            return collect(self.inputs, statistic, linears, watch, sampled)
        shifts = Shifts(self._dense, partial(InputShift, self._held, self.inputs.calibration), self._shifts)
        return collect(self.inputs, statistic, linears, watch, sampled, shifts)

    def aim(self, linears: Sequence[PrunableLinear], statistic: Any) -> Aim | None:
        """Returns what linear layers that read one tensor are fitted to; ``None``: what their weights make of it.

        To be called once for what was collected of them last (``aimed``), before the statistic is let go of.

        Args:
            linears: which share the statistic.
            statistic: of their inputs, a `Hessian` or `Covariance` of the tokens that are not held out.
        """
        shifts = [self._shifts.pop(linear.name) for linear in linears if linear.name in self._shifts]
        return Aim(shifts[0], statistic, self.inputs.calibration.dense_targets) if shifts else None

    @contextmanager
    def recording(self, linear: PrunableLinear) -> Iterator[Record]:
        """Records the inputs of a linear layer in the first pass inside that collects anything of it."""
        record = self._records[linear.name] = Record(self.inputs.hidden.dtype)
        try:
            yield record
        finally:
            self._records.pop(linear.name, None)

    def write(
        self,
        linear: PrunableLinear,
        weight: Tensor,
        seconds: float = 0.0,
        refined: int | None = None,
        *,
        bias: Tensor | None = None,
        handed_out: bool = False,
    ) -> None:
        """Writes a pruned weight, and records its mask and what the change did to the layer's outputs.

        Args:
            linear: where.
            weight: ``(out, in)``, any float type; zero where pruned.
            seconds: what finding it took.
            refined: of a method that refines, how many of its passes are in the weight; see `LayerRow`.
            bias: ``(out,)``, any float type, of a layer that has one; by default it stays.
            handed_out: all processes have this very weight; otherwise they get that of the first one in the end.

        Raises:
            RunFailed: a value is not finite in the type of the parameter.
        """
        if linear.name not in self._errors.samples:
            self.collect(Nothing)  # the whole block at once, while all of it is still dense
        self._errors.keep_dense_output()
        self._keep_dense_values(linear)
        linear.write(weight)
        if bias is not None:
            linear.write_bias(bias)
        (self._own.discard if handed_out else self._own.add)(linear)
        keep = (linear.weight != 0).cpu()  # (out, in)
        sparsity = 1 - int(keep.count_nonzero()) / keep.numel()
        error = self._errors.of_linear(linear)
        row = LayerRow(linear.name, linear.shape, sparsity, error, seconds, refined=refined)
        self.result.record(row, keep)
        release_free_memory(self.inputs.calibration.device)

    def attach(self, linear: PrunableLinear, pair: Pair, seconds: float = 0.0) -> None:
        """Puts a low-rank part, found in so many seconds, beside a weight that was written.

        Until the block is finished the parameter holds the sum, so that whatever runs the block sees both. All
        processes have the same part.
        """
        self._hand_out_own()
        self._put(linear, pair)
        self.result.record_pair(linear.name, pair, self._errors.of_linear(linear), seconds)

    def write_units(
        self,
        units: Units,
        keep: Tensor,
        seconds: float = 0.0,
        *,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> None:
        """Sets all in this block that belongs to units which go to zero, as `write` does.

        Args:
            units: some of which may lie in the block.
            keep: ``(count,)`` bool, those that stay.
            seconds: what finding them took.
            weight: of the linear layer that reads neurons or heads, ``(out, in)`` any float type, if it is to change
                further.
            bias: of that layer, ``(out,)``, likewise.
        """
        members = [member for member in units.members if member.linear in self.block.linears]
        for member in members:
            linear, share = member.linear, seconds / len(members)
            kept = member.spread(keep.to(linear.weight.device))  # (out,) or (in,)
            if member.dim == 1:
                self.write(linear, (linear.weight if weight is None else weight) * kept, share, bias=bias)
            else:
                own = None if linear.bias is None else linear.bias * kept
                self.write(linear, linear.weight * kept[:, None], share, bias=own)
        if members:  # what lies in other blocks is theirs
            self._keep_dense_values(*self.block.routers)
            units.settle(keep)

    def restore(
        self,
        weights: Mapping[str, Tensor],
        rows: Sequence[LayerRow],
        channel_orders: Mapping[str, Tensor],
        pairs: Mapping[str, Pair],
    ) -> None:
        """Gives the block the weights that an earlier pruning left it with; nothing is measured again.

        Args:
            weights: the block's ``state_dict``.
            rows: of the linear layers that were pruned.
            channel_orders: as in `PruningResult`.
            pairs: likewise, of the linear layers of the block.
        """
        linears = {linear.name: linear for linear in self.block.linears}
        self._keep_dense_values(*(linears[row.name] for row in rows), *self.block.routers)
        self.block.module.load_state_dict(dict(weights))
        for row in rows:
            self.result.record(row, (linears[row.name].weight != 0).cpu())
        self.result.channel_orders.update(channel_orders)
        self.result.pairs.update(pairs)
        for name, pair in pairs.items():
            self._put(linears[name], pair)

    def finish(self) -> None:
        """Records the error of the block, and gives the next block its inputs.

        With ``propagate=dense`` these are the outputs of the block as it was before anything was written.

        Raises:
            RunFailed: an output is not finite.
        """
        self._hand_out_own()
        dense, self._dense = self._dense, DenseValues()
        if self.inputs.dense is not None:
            with dense.in_place():
                self.inputs.dense.propagate()
        if dense and self.inputs.calibration.propagate == "dense":
            self._record_block_error()
            with dense.in_place():
                self.inputs.propagate()
        elif self.inputs.last:
            self._record_block_error()
        else:
            self.inputs.propagate(self._watch_first_batch)
        self._sparse.put_back()

    def _hand_out_own(self) -> None:
        """Gives all processes the weights of the first one: other machines may have rounded otherwise."""
        if count() == 1:
            return
        for linear in self.block.linears:
            if linear in self._own:
                hand_out_values(linear)
                self.result.masks[linear.name] = (linear.weight != 0).cpu()
        self._own.clear()

    def _put(self, linear: PrunableLinear, pair: Pair) -> None:
        """Has the parameter hold the sum of the weight and a low-rank part."""
        self._sparse.keep(linear)
        linear.write(linear.weight.float() + pair.product.to(linear.weight.device))

    def _watch_first_batch(self, batch: slice, output: Tensor) -> None:
        if batch.start == 0:
            self._record_block_error(output)

    def _record_block_error(self, output: Tensor | None = None) -> None:
        """Records the block's error, if anything was written; ``output`` is that of the first batch, if known."""
        if self._errors.of_block_known:
            error = self._errors.of_block(self.inputs.first_output() if output is None else output)
            self.result.record_block_error([linear.name for linear in self.block.linears], error)

    def _keep_dense_values(self, *linears: PrunableLinear) -> None:
        if self.inputs.calibration.propagate == "dense" or self.inputs.dense is not None:
            self._dense.keep(*linears)
