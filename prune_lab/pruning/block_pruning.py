"""One block while it is pruned: through this methods collect, write, and have reported what they did."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.calibration.blocks import BlockInputs
from prune_lab.pruning.calibration.collect import collect
from prune_lab.pruning.calibration.output_error import OutputErrors
from prune_lab.pruning.calibration.statistics import Record, Statistic
from prune_lab.pruning.result import LayerRow, PruningResult
from prune_lab.pruning.target import Target
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
        self._errors = OutputErrors(inputs)
        self._records: dict[str, Record] = {}  # by linear layer, of the next pass that collects its inputs
        self._dense_weights: dict[PrunableLinear, Tensor] = {}  # (out, in); with propagate=dense

    def parts(self) -> tuple[tuple[PrunableLinear, ...], ...]:
        """Groups the linear layers that are calibrated at once: all of the block, or those that read one tensor."""
        return self.inputs.parts()

    def collect(self, statistic: Callable[[], S], linears: Sequence[PrunableLinear] | None = None) -> dict[str, S]:
        """Collects as `prune_lab.pruning.calibration.collect.collect` does, and takes error samples on the way."""
        names = {linear.name for linear in (self.block.linears if linears is None else linears)}
        records = {name: self._records.pop(name) for name in names & self._records.keys()}

        def watch(readers: Sequence[PrunableLinear], rows: Tensor) -> None:
            self._errors.sample(readers, rows)
            for linear in readers:
                if linear.name in records:
                    records[linear.name].update(rows)

        return collect(self.inputs, statistic, linears, watch)

    @contextmanager
    def recording(self, linear: PrunableLinear) -> Iterator[Record]:
        """Records the inputs of a linear layer in the first pass inside that collects anything of it."""
        record = self._records[linear.name] = Record(self.inputs.hidden.dtype)
        try:
            yield record
        finally:
            self._records.pop(linear.name, None)

    def write(self, linear: PrunableLinear, weight: Tensor, seconds: float = 0.0) -> None:
        """Writes a pruned weight, and records its mask and what the change did to the layer's outputs.

        Args:
            linear: where.
            weight: ``(out, in)``, any float type; zero where pruned.
            seconds: what finding it took.

        Raises:
            RunFailed: a value is not finite in the type of the parameter.
        """
        if linear.name not in self._errors.samples:
            self.collect(_Nothing)  # the whole block at once, while all of it is still dense
        self._errors.keep_dense_output()
        self._keep_dense_weight(linear)
        linear.write(weight)
        keep = (linear.weight != 0).cpu()  # (out, in)
        sparsity = 1 - int(keep.count_nonzero()) / keep.numel()
        self.result.record(LayerRow(linear.name, linear.shape, sparsity, self._errors.of_linear(linear), seconds), keep)
        release_free_memory(self.inputs.calibration.device)

    def restore(
        self, weights: Mapping[str, Tensor], rows: Sequence[LayerRow], channel_orders: Mapping[str, Tensor]
    ) -> None:
        """Gives the block the weights that an earlier pruning left it with; nothing is measured again.

        Args:
            weights: the block's ``state_dict``.
            rows: of the linear layers that were pruned.
            channel_orders: as in `PruningResult`.
        """
        linears = {linear.name: linear for linear in self.block.linears}
        for row in rows:
            self._keep_dense_weight(linears[row.name])
        self.block.module.load_state_dict(dict(weights))
        for row in rows:
            self.result.record(row, (linears[row.name].weight != 0).cpu())
        self.result.channel_orders.update(channel_orders)

    def finish(self) -> None:
        """Records the error of the block, and gives the next block its inputs.

        With ``propagate=dense`` these are the outputs of the block as it was before anything was written.

        Raises:
            RunFailed: an output is not finite.
        """
        if self._dense_weights:
            self._record_block_error()
            pruned = {linear: linear.weight.clone() for linear in self._dense_weights}
            _copy(self._dense_weights)
            self._dense_weights = {}
            self.inputs.propagate()
            _copy(pruned)
        elif self.inputs.last:
            self._record_block_error()
        else:
            self.inputs.propagate(self._watch_first_batch)

    def _watch_first_batch(self, batch: slice, output: Tensor) -> None:
        if batch.start == 0:
            self._record_block_error(output)

    def _record_block_error(self, output: Tensor | None = None) -> None:
        """Records the block's error, if anything was written; ``output`` is that of the first batch, if known."""
        if self._errors.of_block_known:
            error = self._errors.of_block(self.inputs.first_output() if output is None else output)
            self.result.record_block_error([linear.name for linear in self.block.linears], error)

    def _keep_dense_weight(self, linear: PrunableLinear) -> None:
        if self.inputs.calibration.propagate == "dense" and linear not in self._dense_weights:
            self._dense_weights[linear] = linear.weight.clone()


class _Nothing:
    """A statistic of nothing: for a pass that only takes error samples."""

    def update(self, inputs: Tensor) -> None:
        """Does nothing."""


@torch.no_grad()
def _copy(weights: Mapping[PrunableLinear, Tensor]) -> None:
    for linear, weight in weights.items():
        linear.weight.copy_(weight)
