"""The one interface of a pruning method, and the loops most methods share."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from prune_lab.errors import BadSetting, NotPositiveDefinite
from prune_lab.models.model import PrunableModel
from prune_lab.models.units import Units
from prune_lab.models.view import Block, PrunableLinear
from prune_lab.pruning.calibration.blocks import BlockInputs, Calibration, iterate_blocks
from prune_lab.pruning.calibration.resume import FinishedBlocks
from prune_lab.pruning.calibration.statistics import Statistic
from prune_lab.pruning.masks import Masks, count_dropped, keep_all_but, keep_n_of_m
from prune_lab.pruning.target import Target


class Method(ABC):
    """A way to prune a model."""

    patterns: ClassVar[frozenset[str]] = frozenset({"unstructured", "N:M"})
    """The kinds of pattern that it can make, see `Target.kind`."""

    done: FinishedBlocks | None = None
    """Where blocks are kept for the case of an interruption; set by the stage, and used by methods that can go on."""

    @abstractmethod
    def prune(self, model: PrunableModel, calibration: Calibration, target: Target) -> Masks:
        """Prunes the model in place and returns what was kept, by layer name, on the host.

        Weights are written through `BlockInputs.install`, which also records what was done to each.
        """

    @property
    def orders(self) -> dict[str, Tensor]:
        """By layer name, the order of input channels ``(in,)`` int64 in which an N:M pattern holds, if another."""
        return {}

    @property
    def keeps_order(self) -> bool:
        """Whether an N:M pattern always holds for the input channels as they are."""
        return True

    @property
    def by_block(self) -> bool:
        """Whether blocks are pruned one by one, each to its own target; else one cut is made for the whole model."""
        return True

    def check(self, target: Target) -> None:  # noqa: B027 - most methods can do every target
        """Raises `BadInput` when the method cannot do what the target asks; called before a model is loaded."""


class BlockMethod(Method):
    """A method that works on one block at a time, in order."""

    @torch.no_grad()
    def prune(self, model: PrunableModel, calibration: Calibration, target: Target) -> Masks:
        """Walks the blocks, and calls `prune_block` on those in the target's range."""
        masks = Masks()
        for block, inputs in iterate_blocks(model, calibration, target.end(model)):
            if target.includes(block):
                masks.update(self.prune_once(block, inputs, target))
        return masks

    def prune_once(self, block: Block, inputs: BlockInputs, target: Target) -> Masks:
        """Calls `prune_block`, unless the block was pruned before an interruption."""
        if self.done is None:
            return self.prune_block(block, inputs, target)
        self.done.settle(inputs.calibration.rows)
        masks = self.done.restore(inputs, self.orders)
        if masks is None:
            masks = self.prune_block(block, inputs, target)
            self.done.note(block, masks, self.orders)
        return masks

    def prune_block(self, block: Block, inputs: BlockInputs, target: Target) -> Masks:
        """Prunes one block in place: all its layers at once, or one part after the other (``sequential=layer``)."""
        masks = Masks()
        for linears in inputs.parts():
            masks.update(self.prune_linears(linears, inputs, target))
        return masks

    @abstractmethod
    def prune_linears(self, linears: tuple[PrunableLinear, ...], inputs: BlockInputs, target: Target) -> Masks:
        """Prunes some linear layers of a block in place."""


class LayerwiseMethod(BlockMethod):
    """A method that works on one weight at a time, from one statistic of its inputs.

    The statistics of a block are collected in one pass, before any of its weights changes (with ``sequential=layer``,
    in one pass for all weights that read the same tensor).
    """

    statistic: ClassVar[type[Statistic]]

    def prune_linears(self, linears: tuple[PrunableLinear, ...], inputs: BlockInputs, target: Target) -> Masks:
        """Collects, prepares each statistic once, and solves for every weight that reads it."""
        masks = Masks()
        for statistic, shared in by_statistic(inputs.collect(self.statistic, linears), linears):
            start = time.perf_counter()
            with naming(shared[0], self):
                prepared = self.prepare(statistic)
            for linear in shared:
                with naming(linear, self):
                    weight = self.solve(linear, prepared, target)
                masks[linear.name] = inputs.install(linear, weight, time.perf_counter() - start)
                start = time.perf_counter()
        return masks

    def prepare(self, statistic: Any) -> Any:
        """What `solve` gets of a statistic: work done once for all weights that read the same inputs."""
        return statistic

    @abstractmethod
    def solve(self, linear: PrunableLinear, prepared: Any, target: Target) -> Tensor:
        """The pruned weight, ``(out, in)``, any float type; zero where pruned. ``linear`` is not changed."""


class RefiningMethod(BlockMethod):
    """A method that starts from what another one did to a block: better masks, or better values under its masks.

    ``inner`` is that other method; what it needs of the data it collects itself. The inputs that this one refines with
    are those of the dense block (with ``sequential=layer``, of the block with all linear layers before refined).
    """

    inner: BlockMethod
    statistic: ClassVar[type[Statistic]]

    def check(self, target: Target) -> None:
        """What the inner method cannot do, this one cannot either."""
        check_inner(self, target)
        if target.n_of_m and not self.inner.keeps_order:
            raise BadSetting(
                self,
                "inner",
                f"puts the channels in another order for {target.pattern}, which cannot be refined; use "
                "{at}.inner.permute=false",
            )

    def prune_block(self, block: Block, inputs: BlockInputs, target: Target) -> Masks:
        """Lets the inner method prune the block, then refines linear layer by linear layer."""
        dense = {linear.name: linear.weight.clone() for linear in block.linears}
        parts = inputs.parts()
        early = inputs.collect(self.statistic, block.linears) if len(parts) == 1 else None
        masks = self.inner.prune_block(block, inputs, target)
        for linears in parts:
            statistics = inputs.collect(self.statistic, linears) if early is None else early
            for statistic, shared in by_statistic(statistics, linears):
                start = time.perf_counter()
                with naming(shared[0], self):
                    prepared = self.prepare(statistic)
                for linear in filter(partial(self.refines, block), shared):
                    with naming(linear, self):
                        weight = self.refine(dense[linear.name], linear.weight, prepared, target)
                    masks[linear.name] = inputs.install(linear, weight, time.perf_counter() - start)
                    start = time.perf_counter()
        return masks

    def prune_linears(self, linears: tuple[PrunableLinear, ...], inputs: BlockInputs, target: Target) -> Masks:
        """Never called: `prune_block` does all of it, as the inner method may treat linear layers jointly."""
        raise AssertionError("a refining method works on blocks")

    def refines(self, block: Block, linear: PrunableLinear) -> bool:
        """Whether a linear layer is refined; where not, it stays as the inner method left it."""
        return True

    def prepare(self, statistic: Any) -> Any:
        """What `refine` gets of a statistic: work done once for all weights that read the same inputs."""
        return statistic

    @abstractmethod
    def refine(self, dense: Tensor, pruned: Tensor, prepared: Any, target: Target) -> Tensor:
        """The refined weight, ``(out, in)``, any float type; zero where pruned, with as many zeros as ``pruned`` has.

        Args:
            dense: the weight before anything was done to it, ``(out, in)``.
            pruned: what the inner method made of it.
            prepared: from `prepare`.
            target: for its N:M pattern.
        """


class DataFreeMethod(BlockMethod):
    """A method that chooses from the weights alone; calibration data serve only to measure its error."""

    @torch.no_grad()
    def prune(self, model: PrunableModel, calibration: Calibration, target: Target) -> Masks:
        """Chooses all masks, then applies them block by block."""
        start = time.perf_counter()
        if target.removes_units:
            units = target.units(model)
            masks = self.select_units(units, target, calibration.seed)
            _apply_to_units(units, masks, iterate_blocks(model, calibration.first_batch(), target.end(model)), start)
            return masks
        masks = self.select_mask(target.linears(model), target, calibration.seed)
        seconds = (time.perf_counter() - start) / len(masks)
        for block, inputs in iterate_blocks(model, calibration.first_batch(), target.end(model)):
            if target.includes(block):
                _apply(masks, block.linears, inputs, seconds)
        return masks

    def prune_linears(self, linears: tuple[PrunableLinear, ...], inputs: BlockInputs, target: Target) -> Masks:
        """Chooses and applies the masks of some linear layers."""
        start = time.perf_counter()
        masks = self.select_mask(list(linears), target, inputs.calibration.seed)
        _apply(masks, linears, inputs, (time.perf_counter() - start) / len(linears))
        return masks

    @abstractmethod
    def select_mask(self, linears: list[PrunableLinear], target: Target, seed: int) -> Masks:
        """The keep-masks of all linear layers, ``(out, in)`` each."""

    def select_units(self, units: list[Units], target: Target, seed: int) -> Masks:
        """The keep-masks ``(count,)`` of neurons or heads, by the name of the units; for methods that can."""
        raise NotImplementedError(type(self).__name__)


def check_inner(outer: Any, target: Target) -> None:
    """Checks the method that another one starts from, block by block.

    Raises:
        BadSetting: it does not work so, or cannot do what the target asks.
    """
    inner = outer.inner
    if not isinstance(inner, BlockMethod):
        raise BadSetting(
            outer, "inner", "does not prune block by block; use one that does, such as method@{at}.inner=wanda"
        )
    if not inner.by_block:
        raise BadSetting(
            outer,
            "inner",
            f"chooses over the whole model at once, and {type(outer).__name__} works block by block; use "
            "{at}.inner.scope=layer or row",
        )
    inner.check(target)


def keep_in_layer(scores: Tensor, target: Target, name: str) -> Tensor:
    """Drops the lowest scores ``(out, in)`` of a whole layer, or of every group for an N:M target."""
    if target.n_of_m:
        return keep_n_of_m(scores, *target.n_of_m)
    return keep_all_but(scores.flatten(), target.dropped(name, scores.numel())).view_as(scores)


def keep_in_rows(scores: Tensor, target: Target, name: str) -> Tensor:
    """Drops the lowest scores ``(out, in)`` of every row, or of every group for an N:M target.

    Every row loses ``floor(s * in)``. A linear layer with a budget of its own loses exactly ``target.dropped`` all
    told: rows lose equally many, but for the remainder, which goes from the rows whose next score is least of their
        mean score.
    """
    if target.n_of_m:
        return keep_n_of_m(scores, *target.n_of_m)
    if name not in target.budget:
        return keep_all_but(scores, count_dropped(target.of(name), scores.shape[1]))
    each, more = divmod(target.dropped(name, scores.numel()), len(scores))
    keep = keep_all_but(scores, each)
    if more:
        _drop_next(keep, scores.float(), more)
    return keep


def _drop_next(keep: Tensor, scores: Tensor, count: int) -> None:
    """Drops one more weight from each of ``count`` rows of ``keep``, ``(out, in)``, in place."""
    following = scores.masked_fill(~keep, torch.inf).min(1)
    relative = following.values / scores.mean(1).clamp_min(torch.finfo(scores.dtype).tiny)
    rows = relative.argsort(stable=True)[:count]
    keep[rows, following.indices[rows]] = False


@contextmanager
def naming(linear: PrunableLinear, method: Method) -> Iterator[None]:
    """Reports a numerical failure inside with the name of the layer and a remedy, a key of the method."""
    try:
        yield
    except NotPositiveDefinite as error:
        raise NotPositiveDefinite(
            f"{linear.name}: {error.args[0]}; raise {{at}}.damping, or use more calibration tokens (data.samples)",
            method,
        ) from error


def _apply(masks: Masks, linears: tuple[PrunableLinear, ...], inputs: BlockInputs, seconds: float) -> None:
    for linear in linears:
        weight = linear.weight
        masks[linear.name] = inputs.install(linear, weight * masks[linear.name].to(weight.device), seconds)


def _apply_to_units(
    units: list[Units], masks: Masks, blocks: Iterator[tuple[Block, BlockInputs]], start: float
) -> None:
    """Zeros what belongs to the units that go, block by block; ``start`` is when choosing them began."""
    seconds = (time.perf_counter() - start) / sum(len(each.members) for each in units)
    of_linear = {member.linear.name: (each, member) for each in units for member in each.members}
    for block, inputs in blocks:
        found = [(linear, *of_linear[linear.name]) for linear in block.linears if linear.name in of_linear]
        for linear, each, member in found:
            keep = member.spread(masks[each.name]).to(linear.weight.device)
            inputs.install(linear, linear.weight * (keep[:, None] if member.dim == 0 else keep), seconds)
        for name, each in {each.name: each for _, each, _ in found}.items():
            each.apply(masks[name])  # biases too


def by_statistic(
    statistics: dict[str, Any], linears: tuple[PrunableLinear, ...]
) -> Iterator[tuple[Any, list[PrunableLinear]]]:
    """Each distinct statistic with the layers that share it; ``statistics`` is emptied on the way, to free memory."""
    while statistics:
        statistic = next(iter(statistics.values()))
        shared = [linear for linear in linears if statistics.get(linear.name) is statistic]
        for linear in shared:
            del statistics[linear.name]
        yield statistic, shared
