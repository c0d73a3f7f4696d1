"""Walks a model block by block over calibration data and accumulates what a method asks for.

`walk` is the one place that moves blocks: on the device are one block, its statistics and one batch of activations. The
hidden states of the calibration set stay on the host, once, and are overwritten in place.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from prune_lab.device import release_free_memory
from prune_lab.errors import BadInput, RunFailed
from prune_lab.models.view import Block, PrunableModel, Site
from prune_lab.precision import is_slow_at, widen, widened
from prune_lab.progress import track

_PROBE_TOKENS = 256


class Statistic(Protocol):
    """Something accumulated over the inputs of a site."""

    def update(self, inputs: Tensor) -> None:
        """Takes one batch of inputs, ``(tokens, in)``, in the type of the model."""


S = TypeVar("S", bound=Statistic)


class Hessian:
    """Second moment of a site's inputs, ``1/T sum x x^T``.

    Only the upper triangle is computed: row panels of a few hundred rows, each from its diagonal on. Peak memory on the
    device: ``in^2`` floats, and one batch of inputs in float32.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._sum: Tensor | None = None

    def update(self, inputs: Tensor) -> None:
        """Adds a batch ``(tokens, in)``; accumulates in float32."""
        x = inputs.float()
        width = x.shape[1]
        if self._sum is None:
            self._sum = torch.zeros(width, width, device=x.device)
        panel = max(128, -(-width // 6))
        for start in range(0, width, panel):
            self._sum[start : start + panel, start:].addmm_(x[:, start : start + panel].T, x[:, start:])
        self.tokens += len(x)

    @property
    def value(self) -> Tensor:
        """``(in, in)`` float32, symmetric."""
        assert self._sum is not None, "no batch was seen"
        upper = self._sum.triu() / self.tokens
        return upper + upper.triu(1).T

    def release(self) -> Tensor:
        """Gives away the sum ``sum x x^T`` itself, ``(in, in)`` float32; only its upper triangle means anything.

        For solvers that need no scale and no second copy; the statistic is empty afterwards.
        """
        assert self._sum is not None, "no batch was seen"
        upper, self._sum = self._sum, None
        return upper


class InputNorm:
    """L2 norm of each input over the tokens seen."""

    def __init__(self) -> None:
        self._squares: Tensor | None = None

    def update(self, inputs: Tensor) -> None:
        """Adds a batch ``(tokens, in)``; accumulates in float32."""
        squares = inputs.float().square().sum(0)  # vector_norm over dim 0 takes eight times as long
        self._squares = squares if self._squares is None else self._squares + squares

    @property
    def value(self) -> Tensor:
        """``(in,)`` float32."""
        assert self._squares is not None, "no batch was seen"
        return self._squares.sqrt()


@dataclass(frozen=True)
class LayerRow:
    """What pruning did to one weight: a line of ``layers.csv``.

    ``error`` is ``|(W - W') X|^2 / |W X|^2`` over up to 256 inputs ``X`` spread evenly over the first batch, as they
    reach the site (blocks before it pruned, this block dense). ``seconds`` is the time of the solver.
    """

    name: str
    shape: tuple[int, int]
    sparsity: float
    error: float
    seconds: float


@dataclass
class Calibration:
    """The calibration set as a method gets it.

    Args:
        tokens: ``(samples, seqlen)`` int64, on the host.
        batch_size: samples in one forward pass; by default about 1,024 tokens on a CPU and 8,192 on an accelerator.
        device: where blocks and statistics live while they are worked on.
        seed: for methods that choose at random.
    """

    tokens: Tensor
    batch_size: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    rows: list[LayerRow] = field(default_factory=list)  # filled by `BlockInputs.install`

    def first_batch(self) -> "Calibration":
        """The first batch alone, with the same ``rows``: for methods that use data only to measure their error."""
        size = self.batch_size or self._default_batch()
        return Calibration(self.tokens[:size], size, self.device, self.seed, self.rows)

    def batches(self) -> list[slice]:
        """Which samples make each batch."""
        size = self.batch_size or self._default_batch()
        return [slice(start, min(start + size, len(self.tokens))) for start in range(0, len(self.tokens), size)]

    def _default_batch(self) -> int:
        return max(1, (1024 if self.device.type == "cpu" else 8192) // self.tokens.shape[1])


@dataclass
class BlockInputs:
    """The calibration set as it reaches one block."""

    block: Block
    calibration: Calibration
    hidden: Tensor  # (samples, seqlen, hidden), host; shared by all blocks
    calls: list["Call"]  # one per batch
    probes: dict[str, Tensor] = field(default_factory=dict)  # by site: (tokens, in)

    def collect(self, statistic: Callable[[], S], sites: Sequence[Site] | None = None) -> dict[str, S]:
        """Runs the block over the calibration set and returns a statistic per site, by site name.

        Sites that read the same tensor (query, key and value; gate and up) share one object. Each forward pass ends at
        the last site that is asked for: what comes after it would be thrown away.
        Where the processor is slow at half precision, the pass runs in float32.

        Args:
            statistic: makes an empty one.
            sites: which; all of the block by default.
        """
        wanted = {site.name: site for site in (self.block.sites if sites is None else sites)}
        statistics = _Collector(self, statistic, wanted).run() if wanted else {}
        release_free_memory(self.calibration.device)  # the activations; solvers need room next
        return statistics

    def advance(self) -> None:
        """Runs the block as it now is, and puts its outputs in the place of its inputs.

        Raises:
            RunFailed: an output is not finite.
        """
        for batch, call in zip(self.calibration.batches(), self.calls, strict=True):
            out = self.block.hidden(self.run(batch, call))
            if not bool(torch.isfinite(out.sum(dtype=torch.float32))):
                raise RunFailed(
                    f"{self.block.name}: the outputs have NaN or infinite values on the calibration samples "
                    f"{batch.start} to {batch.stop - 1}; use model.dtype=float32, or a lower sparsity"
                )
            self.hidden[batch].copy_(out)

    def run(self, batch: slice, call: "Call") -> Any:
        """One forward pass of the block."""
        return self.block.module(self.hidden[batch].to(self.calibration.device), *call.args, **call.kwargs)

    def run_wide(self, batch: slice, call: "Call") -> Any:
        """One forward pass of the block in float32, inside `widened`."""
        return self.block.module(self.hidden[batch].float(), *widen(call.args), **widen(call.kwargs))

    def install(self, site: Site, weight: Tensor, seconds: float = 0.0) -> Tensor:
        """Writes a pruned weight, records what it did, and returns its keep-mask.

        Args:
            site: where.
            weight: ``(out, in)``, any float type; zero where pruned.
            seconds: what finding it took.

        Returns:
            ``(out, in)`` bool on the host: which weights are not zero.
        """
        if site.name not in self.probes:
            self.collect(_Ignore)  # the whole block at once, while all of it is still dense
        inputs = self.probes[site.name].float()
        dense_out = inputs @ site.weight.float().T  # (tokens, out)
        site.write(weight)
        change = (dense_out - inputs @ site.weight.float().T).square().sum()
        error = change / dense_out.square().sum() if change > 0 else change
        keep = (site.weight != 0).cpu()
        sparsity = 1 - int(keep.count_nonzero()) / keep.numel()
        self.calibration.rows.append(LayerRow(site.name, site.shape, sparsity, float(error), seconds))
        release_free_memory(self.calibration.device)
        return keep


@dataclass
class Call:
    """The arguments a model gives to one block, besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@torch.no_grad()
def walk(model: PrunableModel, calibration: Calibration) -> Iterator[tuple[Block, BlockInputs]]:
    """Yields each block on the device with its calibration inputs; the next sees this one's outputs as you left it.

    The hidden states equal those of the model's own forward exactly: every block gets the arguments that the model
    gives to it (they differ between blocks of one model, by sliding window or attention kind).

    Raises:
        BadInput: a calibration token is outside the vocabulary.
        RunFailed: activations are not finite.
    """
    _check_tokens(model, calibration)
    hidden, calls = _rehearse(model, calibration)
    work = zip(model.blocks, calls, strict=True)
    for block, block_calls in track(work, len(model.blocks), "blocks"):
        block.module.to(calibration.device)
        inputs = BlockInputs(block, calibration, hidden, block_calls)
        try:
            yield block, inputs
            if block is not model.blocks[-1]:  # nobody reads the outputs of the last
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

    def __init__(self, inputs: BlockInputs, statistic: Callable[[], Statistic], wanted: dict[str, Site]):
        self.inputs = inputs
        self.statistic = statistic
        self.wanted = wanted
        self.leader: dict[str, str] = {}  # site -> the first site that reads the same tensor
        self.stats: dict[str, Any] = {}
        self._seen: list[tuple[str, weakref.ref[Tensor]]] = []  # what each site of the running forward pass has read

    def run(self) -> dict[str, Any]:
        with ExitStack() as hooks:
            for name, site in self.wanted.items():
                handle = site.module.register_forward_pre_hook(partial(self._observe, name))
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
            self.inputs.probes[name] = self.inputs.probes[self.leader[name]]
        self._seen.append((name, weakref.ref(x)))
        if len(self._seen) == len(self.wanted):
            raise _EnoughError

    def _probe(self, name: str, rows: Tensor) -> None:
        if not bool(torch.isfinite(rows.sum(dtype=torch.float32))):
            raise RunFailed(
                f"{name}: the inputs have NaN or infinite values; use model.dtype=float32, or a lower sparsity"
            )
        step = max(1, len(rows) // _PROBE_TOKENS)
        self.inputs.probes[name] = rows[::step][:_PROBE_TOKENS].clone()


def _check_tokens(model: PrunableModel, calibration: Calibration) -> None:
    top, bottom = int(calibration.tokens.max()), int(calibration.tokens.min())
    if bottom < 0 or top >= model.vocab_size:
        raise BadInput(
            f"the calibration tokens reach from {bottom} to {top}, but {model.name} has the ids 0 to "
            f"{model.vocab_size - 1}; were they made with another tokenizer?"
        )


def _rehearse(model: PrunableModel, calibration: Calibration) -> tuple[Tensor, list[list[Call]]]:
    """The hidden states before block 0, and the arguments the model gives to each block.

    They come from forward passes without the head in which every block does nothing, so they cost almost nothing.
    Block 0 cannot speak for the rest: blocks of one model may differ in their arguments.
    """
    calls: list[list[Call]] = [[] for _ in model.blocks]
    hidden: list[Tensor] = []
    outside = _outside_blocks(model)
    for block, record in zip(model.blocks, calls, strict=True):
        block.module.forward = partial(_pass_through, block, record, hidden)
    try:
        for module in outside:
            module.to(calibration.device)
        states = None
        for batch in calibration.batches():
            hidden.clear()
            model.hf.base_model(calibration.tokens[batch].to(calibration.device), use_cache=False)
            if states is None:
                states = torch.empty(len(calibration.tokens), *hidden[0].shape[1:], dtype=hidden[0].dtype)
            states[batch].copy_(hidden[0])
    finally:
        for block in model.blocks:
            del block.module.forward
        for module in outside:
            module.to("cpu")
    assert states is not None
    return states, calls


def _outside_blocks(model: PrunableModel) -> list[torch.nn.Module]:
    """The smallest modules of the base model that hold no block: embeddings, final norm, rotary tables."""
    blocks = {block.module for block in model.blocks}

    def holds_block(module: torch.nn.Module) -> bool:
        return any(child in blocks for child in module.modules())

    def visit(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
        for child in module.children():
            if child in blocks:
                continue
            if holds_block(child):
                yield from visit(child)
            else:
                yield child

    return list(visit(model.hf.base_model))


def _pass_through(
    block: Block, record: list[Call], hidden: list[Tensor], states: Tensor, *args: Any, **kwargs: Any
) -> Any:
    call = Call(args, kwargs)
    if record:  # one copy of what all batches have in common (masks, rotary tables), not one per batch
        call = Call(
            _same(args, record[0].args), {key: _same(value, record[0].kwargs[key]) for key, value in kwargs.items()}
        )
    record.append(call)
    if block.index == 0:
        hidden.append(states)
    return (states, None) if block.tuple_out else states


def _same(value: Any, first: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_same(a, b) for a, b in zip(value, first, strict=True))
    if isinstance(value, Tensor) and value.shape == first.shape and torch.equal(value, first):
        return first
    return value
