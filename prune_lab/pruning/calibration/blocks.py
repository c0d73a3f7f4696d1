"""Walks a model block by block over calibration data and accumulates what a method asks for.

`iterate_blocks` is the one place that moves blocks: on the device are one block, its statistics and one batch of
activations. The hidden states of the calibration set stay on the host, once, and are overwritten in place.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from prune_lab.errors import BadInput, RunFailed
from prune_lab.models.model import PrunableModel
from prune_lab.models.view import Block, PrunableLinear
from prune_lab.pruning.calibration.capture import Call, capture_block_inputs
from prune_lab.pruning.calibration.precision import is_slow_at, widen, widened
from prune_lab.pruning.calibration.statistics import Statistic
from prune_lab.utils.checks import check_choice
from prune_lab.utils.device import release_free_memory
from prune_lab.utils.progress import track

_PROBE_TOKENS = 256


S = TypeVar("S", bound=Statistic)


@dataclass(frozen=True)
class LayerRow:
    """What pruning did to one weight: a line of ``layers.csv``.

    ``error`` is ``|(W - W') X|^2 / |W X|^2`` over up to 256 inputs ``X`` spread evenly over the first batch, as they
    reach the linear layer when its statistic is collected. ``block_error`` is that of the whole block on the first
    batch, ``|f'(X) - f(X)|^2 / |f(X) - X|^2``: relative to what the block adds to the residual stream. ``seconds`` is
    the time of the solver.
    """

    name: str
    shape: tuple[int, int]
    sparsity: float
    error: float
    seconds: float
    block_error: float = float("nan")


@dataclass
class Calibration:
    """The calibration set as a method gets it.

    Args:
        tokens: ``(samples, seqlen)`` int64, on the host.
        batch_size: samples in one forward pass; by default about 1,024 tokens on a CPU and 8,192 on an accelerator.
        device: where blocks and statistics live while they are worked on.
        seed: for methods that choose at random.
        propagate: what the next block sees: the outputs of this one ``pruned``, or as it was ``dense``.
        sequential: when inputs are collected: once a ``block``, or again for every ``layer`` (or linear layers that
            read the same tensor), after the linear layers before it are pruned ("true sequential").

    Raises:
        BadInput: an order is unknown.
    """

    tokens: Tensor
    batch_size: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    rows: list[LayerRow] = field(default_factory=list)  # filled by `BlockInputs.install`
    propagate: str = "pruned"
    sequential: str = "block"

    def __post_init__(self) -> None:
        check_order(self)

    def first_batch(self) -> "Calibration":
        """The first batch alone, with the same ``rows``: for methods that use data only to measure their error."""
        size = self.batch_size or self._default_batch()
        return replace(self, tokens=self.tokens[:size], batch_size=size)

    def batches(self) -> list[slice]:
        """Which samples make each batch."""
        size = self.batch_size or self._default_batch()
        return [slice(start, min(start + size, len(self.tokens))) for start in range(0, len(self.tokens), size)]

    def _default_batch(self) -> int:
        return max(1, (1024 if self.device.type == "cpu" else 8192) // self.tokens.shape[1])


def check_order(owner: object) -> None:
    """Checks the fields ``propagate`` and ``sequential``, the order of work.

    Raises:
        BadSetting: one is unknown.
    """
    check_choice(owner, "propagate", ("pruned", "dense"))
    check_choice(owner, "sequential", ("block", "layer"))


@dataclass(frozen=True)
class Probe:
    """A few inputs of a linear layer, and what the linear layer makes of them while it is dense."""

    inputs: Tensor  # (tokens, in), type of the model
    outputs: Tensor  # (tokens, out) float32, without the bias

    @classmethod
    def of(cls, inputs: Tensor, linear: PrunableLinear) -> "Probe":
        """Takes the outputs of the linear layer as it is."""
        return cls(inputs, inputs.float() @ linear.weight.float().T)

    def error(self, weight: Tensor) -> float:
        """``|(W - W') X|^2 / |W X|^2`` of a weight ``(out, in)``."""
        change = (self.outputs - self.inputs.float() @ weight.float().T).square().sum()
        return float(change / self.outputs.square().sum() if change > 0 else change)


@dataclass
class BlockInputs:
    """The calibration set as it reaches one block."""

    block: Block
    calibration: Calibration
    hidden: Tensor  # (samples, seqlen, hidden), host; shared by all blocks
    calls: list[Call]  # one per batch
    probes: dict[str, Probe] = field(default_factory=dict)  # by linear layer
    listeners: dict[str, Callable[[Tensor], None]] = field(
        default_factory=dict
    )  # by linear layer; get one pass of `collect`
    _dense_output: Tensor | None = None  # of the first batch, from before the first `install`
    _dense_weights: dict[str, Tensor] = field(default_factory=dict)  # with propagate=dense

    def parts(self) -> tuple[tuple[PrunableLinear, ...], ...]:
        """The linear layers that are calibrated at once: all of the block, or those that read one tensor."""
        return self.block.shared_inputs if self.calibration.sequential == "layer" else (self.block.linears,)

    def collect(self, statistic: Callable[[], S], linears: Sequence[PrunableLinear] | None = None) -> dict[str, S]:
        """Runs the block over the calibration set and returns a statistic per linear layer, by the layer's name.

        Sites that read the same tensor (query, key and value; gate and up) share one object. Each forward pass ends at
        the last linear layer that is asked for: what comes after it would be thrown away.
        Where the processor is slow at half precision, the pass runs in float32.

        Args:
            statistic: makes an empty one.
            linears: which; all of the block by default.
        """
        wanted = {linear.name: linear for linear in (self.block.linears if linears is None else linears)}
        statistics = _Collector(self, statistic, wanted).run() if wanted else {}
        release_free_memory(self.calibration.device)  # the activations; solvers need room next
        return statistics

    def advance(self) -> None:
        """Runs the block as it now is, and puts its outputs in the place of its inputs.

        Raises:
            RunFailed: an output is not finite.
        """
        dense, self._dense_weights = self._dense_weights, {}
        if dense:  # propagate=dense
            self._note_block_error()
            pruned = {linear: linear.weight.clone() for linear in self._linears_of(dense)}
            for linear in pruned:
                linear.weight.copy_(dense[linear.name])
        for batch, call in zip(self.calibration.batches(), self.calls, strict=True):
            out = self.block.hidden(self.run(batch, call))
            if batch.start == 0 and not dense:
                self._note_block_error(out)
            if not bool(torch.isfinite(out.sum(dtype=torch.float32))):
                raise RunFailed(
                    f"{self.block.name}: the outputs have NaN or infinite values on the calibration samples "
                    f"{batch.start} to {batch.stop - 1}; use model.dtype=float32, or a lower sparsity"
                )
            self.hidden[batch].copy_(out)
        if dense:
            for linear, weight in pruned.items():
                linear.weight.copy_(weight)

    def finish(self) -> None:
        """Records the error of a block whose outputs nobody needs."""
        self._note_block_error()

    def run(self, batch: slice, call: "Call") -> Any:
        """One forward pass of the block."""
        return self.block.module(self.hidden[batch].to(self.calibration.device), *call.args, **call.kwargs)

    def run_wide(self, batch: slice, call: "Call") -> Any:
        """One forward pass of the block in float32, inside `widened`."""
        return self.block.module(self.hidden[batch].float(), *widen(call.args), **widen(call.kwargs))

    def install(self, linear: PrunableLinear, weight: Tensor, seconds: float = 0.0) -> Tensor:
        """Writes a pruned weight, records what it did, and returns its keep-mask.

        Args:
            linear: where.
            weight: ``(out, in)``, any float type; zero where pruned.
            seconds: what finding it took.

        Returns:
            ``(out, in)`` bool on the host: which weights are not zero.
        """
        if linear.name not in self.probes:
            self.collect(_Ignore)  # the whole block at once, while all of it is still dense
        if self._dense_output is None:
            self._dense_output = self._first_output()
        if self.calibration.propagate == "dense":
            self._dense_weights.setdefault(linear.name, linear.weight.clone())
        linear.write(weight)
        keep = (linear.weight != 0).cpu()
        sparsity = 1 - int(keep.count_nonzero()) / keep.numel()
        row = LayerRow(linear.name, linear.shape, sparsity, self.probes[linear.name].error(linear.weight), seconds)
        self._note(row)
        release_free_memory(self.calibration.device)
        return keep

    def replace(self, weights: Mapping[str, Tensor], pruned: Iterable[PrunableLinear]) -> None:
        """Gives the block other weights, which were pruned from those it has; nothing is measured.

        Args:
            weights: the block's ``state_dict``.
            pruned: the linear layers whose weights differ.
        """
        if self.calibration.propagate == "dense":
            for linear in pruned:
                self._dense_weights.setdefault(linear.name, linear.weight.clone())
        self.block.module.load_state_dict(dict(weights))

    def _note(self, row: LayerRow) -> None:
        """Adds a row; a linear layer that is installed again keeps its place, and its seconds add up."""
        rows = self.calibration.rows
        earlier = next((index for index, other in enumerate(rows) if other.name == row.name), None)
        if earlier is None:
            rows.append(row)
        else:
            rows[earlier] = replace(row, seconds=row.seconds + rows[earlier].seconds)

    def _first_output(self) -> Tensor:
        return self.block.hidden(self.run(self.calibration.batches()[0], self.calls[0]))

    def _note_block_error(self, output: Tensor | None = None) -> None:
        """Enters the block's error in the rows of its layers; ``output`` is that of the first batch, if known."""
        if self._dense_output is None:  # nothing was pruned here
            return
        output = self._first_output() if output is None else output
        residual = self.hidden[self.calibration.batches()[0]].to(output.device)
        change = (output.float() - self._dense_output.float()).square().sum()
        error = float(change / (self._dense_output.float() - residual.float()).square().sum() if change > 0 else change)
        self._dense_output = None
        names = {linear.name for linear in self.block.linears}
        rows = self.calibration.rows
        rows[:] = [replace(row, block_error=error) if row.name in names else row for row in rows]

    def _linears_of(self, names: Iterable[str]) -> list[PrunableLinear]:
        return [linear for linear in self.block.linears if linear.name in names]


@torch.no_grad()
def iterate_blocks(
    model: PrunableModel, calibration: Calibration, blocks: int | None = None
) -> Iterator[tuple[Block, BlockInputs]]:
    """Yields each block on the device with its calibration inputs; the next sees this one's outputs as you left it.

    The hidden states equal those of the model's own forward exactly: every block gets the arguments that the model
    gives to it (they differ between blocks of one model, by sliding window or attention kind). With
    ``propagate="dense"`` the next block sees this one's outputs as they were before `BlockInputs.install`.

    Args:
        model: left as it is, but for what the caller writes.
        calibration: the data.
        blocks: how many, from the first; all by default.

    Raises:
        BadInput: a calibration token is outside the vocabulary.
        RunFailed: activations are not finite.
    """
    _check_tokens(model, calibration)
    hidden, calls = capture_block_inputs(model, calibration.tokens, calibration.batches(), calibration.device)
    wanted = model.blocks[:blocks]
    for block, block_calls in track(zip(wanted, calls, strict=False), len(wanted), "blocks"):
        block.module.to(calibration.device)
        inputs = BlockInputs(block, calibration, hidden, block_calls)
        try:
            yield block, inputs
            if block is wanted[-1]:  # nobody reads the outputs of the last
                inputs.finish()
            else:
                inputs.advance()
        finally:
            block.module.to("cpu")
        release_free_memory(calibration.device)


class _Ignore:
    """A statistic of nothing: for a pass that is only to fill the probes."""

    def update(self, inputs: Tensor) -> None:
        """Does nothing."""


class _EnoughError(Exception):
    """Ends a forward pass from inside a hook."""


class _Collector:
    """One pass of `BlockInputs.collect`."""

    def __init__(self, inputs: BlockInputs, statistic: Callable[[], Statistic], wanted: dict[str, PrunableLinear]):
        self.inputs = inputs
        self.statistic = statistic
        self.wanted = wanted
        self.leader: dict[str, str] = {}  # linear layer -> the first linear layer that reads the same tensor
        self.stats: dict[str, Any] = {}
        self._listeners = {name: inputs.listeners.pop(name) for name in wanted if name in inputs.listeners}
        self._seen: list[
            tuple[str, weakref.ref[Tensor]]
        ] = []  # what each linear layer of the running forward pass has read

    def run(self) -> dict[str, Any]:
        with ExitStack() as hooks:
            for name, linear in self.wanted.items():
                handle = linear.module.register_forward_pre_hook(partial(self._observe, name))
                hooks.callback(handle.remove)
            run = self.inputs.run
            if is_slow_at(self.inputs.hidden.dtype, self.inputs.calibration.device):
                hooks.enter_context(widened(self.inputs.block.module))
                run = self.inputs.run_wide
            for batch, call in zip(self.inputs.calibration.batches(), self.inputs.calls, strict=True):
                self._seen = []
                with suppress(_EnoughError):
                    run(batch, call)
        return {name: self.stats[self.leader[name]] for name in self.wanted}

    def _observe(self, name: str, module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        first = name not in self.leader
        if first:
            self.leader[name] = next((other for other, seen in self._seen if seen() is x), name)
        if self.leader[name] == name:
            rows = x.flatten(0, -2)
            if first:
                self.stats[name] = self.statistic()
                self._probe(name, rows)
            self.stats[name].update(rows)
        elif first:
            leader = self.inputs.probes[self.leader[name]]
            self.inputs.probes.setdefault(name, Probe.of(leader.inputs, self.wanted[name]))
        if name in self._listeners:
            self._listeners[name](x.flatten(0, -2))
        self._seen.append((name, weakref.ref(x)))
        if len(self._seen) == len(self.wanted):
            raise _EnoughError

    def _probe(self, name: str, rows: Tensor) -> None:
        if not bool(torch.isfinite(rows.sum(dtype=torch.float32))):
            raise RunFailed(
                f"{name}: the inputs have NaN or infinite values; use model.dtype=float32, or a lower sparsity"
            )
        step = max(1, len(rows) // _PROBE_TOKENS)
        self.inputs.probes.setdefault(name, Probe.of(rows[::step][:_PROBE_TOKENS].clone(), self.wanted[name]))


def _check_tokens(model: PrunableModel, calibration: Calibration) -> None:
    top, bottom = int(calibration.tokens.max()), int(calibration.tokens.min())
    if bottom < 0 or top >= model.vocab_size:
        raise BadInput(
            f"the calibration tokens reach from {bottom} to {top}, but {model.name} has the ids 0 to "
            f"{model.vocab_size - 1}; were they made with another tokenizer?"
        )
