"""Measures a latency table: a few copies of a block run alone, at each width, and the whole model once.

A part is timed in place, from the moment that its block calls it to the moment that it has computed: on a GPU by
events, which do not hold up the work between parts.
"""

import logging
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from prune_lab.errors import BadInput
from prune_lab.models.block import Block
from prune_lab.models.decoding import pass_with_cache
from prune_lab.models.depth import remove_blocks
from prune_lab.models.experts import moe_of
from prune_lab.models.model import PrunableModel
from prune_lab.models.model_units import heads_of, neurons_of
from prune_lab.models.timing import PARTS, Workload, mark, seconds_between
from prune_lab.models.twin import twin_of
from prune_lab.pruning.latency.curve import Curve, grid
from prune_lab.pruning.latency.table import Conditions, LatencyTable, Phase

if TYPE_CHECKING:  # importing model code takes seconds, which a mistake in the settings should not cost
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_UNSTEADY = 0.25
"""A share of the time that repeats should not be apart by."""

_BYTES = 64 * 10**6
"""Copies of a block have about so many, so that their weights come from memory as in the model, not from a cache."""

Shapes = tuple[str, str]
Times = dict[str, list[float]]
"""By phase, seconds of each repeat."""


@dataclass(frozen=True)
class Clock:
    """What times are read from.

    Attributes:
        mark: takes the device, and gives a moment.
        between: takes two of them, and gives seconds.
    """

    mark: Callable[[torch.device], Any] = mark
    between: Callable[[Any, Any], float] = seconds_between


@dataclass(frozen=True)
class _Step:
    """Seconds of a pass over a prompt, or of one token: of all, and of each attention and feed-forward network."""

    whole: float
    parts: tuple[list[float], list[float]]

    @property
    def rest(self) -> float:
        return max(0.0, self.whole - sum(map(sum, self.parts)))


def shapes_of(model: PrunableModel) -> dict[str, Shapes]:
    """By the names of blocks, what decides the time of their attention and of their feed-forward network.

    Raises:
        BadInput: blocks have experts, whose time depends on what is routed to each.
    """
    if mixtures := [block.name for block in model.blocks if moe_of(block)]:
        raise BadInput(
            f"{model.name} has mixtures of experts ({mixtures[0]} is the first), and latency tables know only blocks "
            "with one feed-forward network; ask for a sparsity.level in the place of sparsity.speedup"
        )
    if narrow := [block.name for block in model.blocks if block.attention.is_narrow]:
        raise BadInput(
            f"{model.name} has heads that have lost values, or rows of queries and keys ({narrow[0]} is the first "
            "block), and latency tables do not know them; ask for a sparsity.level in the place of sparsity.speedup"
        )
    config, found = model.hf.config, {}
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None) or []
    for block in model.blocks:
        attention, mlp = block.attention, block.mlp
        kind = f", {kinds[block.index]}" if block.index < len(kinds) else ""
        heads = f"{attention.kv_heads} key-value and {attention.heads} query heads of {attention.head_dim}"
        of_attention = f"attention of {heads}{kind}"
        found[block.name] = (of_attention, f"feed-forward network of {mlp.down.shape[1]} neurons")
    return found


@torch.no_grad()
def measure(
    model: PrunableModel,
    device: torch.device,
    workload: Workload,
    conditions: Conditions,
    steps: int,
    clock: Clock | None = None,
) -> LatencyTable:
    """Measures the table of a model; the model stays as it is.

    Args:
        model: on the host.
        device: where it is timed.
        workload: that fits the model.
        conditions: of the measurement.
        steps: at how many widths beside 0 each part is timed at most.
        clock: by default the real one.
    """
    clock, blocks, once = clock or Clock(), shapes_of(model), replace(workload, repeats=1)
    prompts = workload.prompts(model).to(device)
    widths: dict[Shapes, _Widths] = {}
    for shapes in dict.fromkeys(blocks.values()):
        logger.info("latency: %s; %s", *shapes)
        widths[shapes] = _Widths.of(model, [block for block in model.blocks if blocks[block.name] == shapes], steps)
    passes: list[list[_Step]] = []
    for _ in range(workload.repeats):  # all in turn, so that none looks slow if the machine becomes slower meanwhile
        with model.placed(device, timed=True) as hf:
            passes += _passes(hf, model.blocks, prompts, once, clock)
        for each in widths.values():
            each.time(model, prompts, once, clock)
    phases = {}
    for part in PARTS:
        whole, rest = (_medians(passes, part, value) for value in (lambda step: step.whole, lambda step: step.rest))
        curves: dict[str, Curve] = {}
        for shapes, each in widths.items():
            curves |= dict(zip(shapes, each.curves(part), strict=True))
        found = Phase(statistics.median(whole), max(whole) - min(whole), statistics.median(rest), curves)
        summed = found.rest + sum(curves[shape].seconds[-1] for shapes in blocks.values() for shape in shapes)
        if max(found.spread, abs(summed - found.seconds)) > _UNSTEADY * found.seconds:
            logger.warning(
                "latency, %s: %d passes of the whole model took %.4g to %.4g s, and its parts by themselves %.4g s "
                "together; where something else is at work on the machine, such times mean little",
                part, len(whole), min(whole), max(whole), summed,
            )  # fmt: skip
        phases[part] = found
    return LatencyTable(conditions, blocks, phases)


@dataclass(frozen=True)
class _Widths:
    """Blocks of one shape, at several widths.

    Attributes:
        indices: of the blocks that copies are made of.
        attention: by key-value heads of an attention, by phase, the seconds of each time.
        mlp: by neurons of a feed-forward network, the same.
    """

    indices: Sequence[int]
    attention: Mapping[int, Times]
    mlp: Mapping[int, Times]

    @classmethod
    def of(cls, model: PrunableModel, alike: Sequence[Block], steps: int) -> "_Widths":
        block = alike[0]
        bytes_each = sum(linear.weight.nbytes for linear in block.linears)
        copies = min(len(alike), max(1, round(_BYTES / bytes_each)))
        every = (heads_of(block).count, neurons_of(block).count)
        found: list[dict[int, Times]] = [
            {number: {part: [] for part in PARTS} for number in grid(count, steps)[1:]} for count in every
        ]
        return cls([each.index for each in alike[:copies]], *found)

    def time(self, model: PrunableModel, prompts: Tensor, workload: Workload, clock: Clock) -> None:
        """Times every width; where one part has fewer of them than the other, its last one again and again."""
        found = (self.attention, self.mlp)
        for index in range(max(map(len, found))):
            kept = [list(each)[min(index, len(each) - 1)] for each in found]
            timed = _times(_small_model(model, self.indices, *kept), prompts, workload, clock)
            for of_part, number, times in zip(found, kept, timed, strict=True):
                for part in PARTS:
                    of_part[number][part] += times[part]

    def curves(self, part: str) -> tuple[Curve, Curve]:
        """Seconds of attention and feed-forward network, in a phase."""
        return _curve(self.attention, part), _curve(self.mlp, part)


def _curve(found: Mapping[int, Times], part: str) -> Curve:
    counts = sorted(found)
    seconds = [found[count][part] for count in counts]
    spread = (0.0, *(max(each) - min(each) for each in seconds))
    return Curve((0, *counts), (0.0, *map(statistics.median, seconds)), spread)  # what is not there takes no time


def _small_model(model: PrunableModel, indices: Sequence[int], heads: int, neurons: int) -> PrunableModel:
    """A model of copies of some blocks with fewer heads and neurons; changes nothing of the given one."""
    small = PrunableModel(twin_of(model.hf))
    remove_blocks(small, indices)
    for block in small.blocks:
        for units, count in ((heads_of(block), heads), (neurons_of(block), neurons)):
            units.select(torch.arange(units.count, device="cpu") < count)
    return small


def _times(small: PrunableModel, prompts: Tensor, workload: Workload, clock: Clock) -> tuple[Times, Times]:
    """By phase, seconds of attention and feed-forward network: of each repeat, the median over blocks and tokens."""
    with small.placed(prompts.device, timed=True) as hf:  # without the output layer, which would take most of the time
        passes = _passes(cast("PreTrainedModel", hf.base_model), small.blocks, prompts, workload, clock)
    attention = {part: _medians(passes, part, lambda step: statistics.median(step.parts[0])) for part in PARTS}
    mlp = {part: _medians(passes, part, lambda step: statistics.median(step.parts[1])) for part in PARTS}
    return attention, mlp


def _medians(passes: Sequence[Sequence[_Step]], part: str, value: Callable[[_Step], float]) -> list[float]:
    """A value of each pass: of its prompt, or the median over the tokens after it."""
    return [value(steps[0]) if part == "prefill" else statistics.median(map(value, steps[1:])) for steps in passes]


def _passes(
    hf: "PreTrainedModel", blocks: Sequence[Block], prompts: Tensor, workload: Workload, clock: Clock
) -> list[list[_Step]]:
    """Of each pass after a warm-up, the steps: the prompt, and one token after the other."""
    moment = partial(clock.mark, prompts.device)
    passes = []
    with _watched(blocks, moment) as marks:
        for _ in range(workload.repeats + 1):
            cache, steps = None, []
            for tokens in [prompts, *[prompts[:, :1]] * workload.new_tokens]:
                begin = moment()
                cache = pass_with_cache(hf, tokens, cache)
                end = moment()
                steps.append(_Step(clock.between(begin, end), (_taken(marks[0], clock), _taken(marks[1], clock))))
            passes.append(steps)
    return passes[1:]


def _taken(marks: list[Any], clock: Clock) -> list[float]:
    """Seconds of parts since the last time: marks alternate between begin and end."""
    found = [clock.between(*each) for each in zip(marks[::2], marks[1::2], strict=True)]
    marks.clear()
    return found


@contextmanager
def _watched(blocks: Sequence[Block], moment: Callable[[], Any]) -> Iterator[tuple[list[Any], list[Any]]]:
    """Notes when attentions and feed-forward networks begin and end."""
    attention: list[Any] = []
    mlp: list[Any] = []
    hooks = []

    def begin(kind: list[Any], *_: Any) -> None:
        if len(kind) % 2 == 0:  # the gate's and the up-projection's beginning are one
            kind.append(moment())

    def end(kind: list[Any], *_: Any) -> None:
        kind.append(moment())

    for block in blocks:
        whole, down = block.attention.module, block.mlp.down
        inner = [each.module for each in block.mlp.linears if each is not down]
        for kind, firsts, last in ((attention, [whole], whole), (mlp, inner, down.module)):
            hooks += [first.register_forward_pre_hook(partial(begin, kind)) for first in firsts]
            hooks.append(last.register_forward_hook(partial(end, kind)))
    try:
        yield attention, mlp
    finally:
        for hook in hooks:
            hook.remove()
