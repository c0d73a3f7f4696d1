"""The one interface of a pruning method, and the loops most methods share."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from prune_lab.calibration import BlockInputs, Calibration, Statistic, walk
from prune_lab.errors import NotPositiveDefinite
from prune_lab.masks import Masks, count_dropped, keep_all_but, keep_n_of_m
from prune_lab.models.view import Block, PrunableModel, Site
from prune_lab.target import Target


class Method(ABC):
    """A way to prune a model."""

    @abstractmethod
    def prune(self, model: PrunableModel, calibration: Calibration, target: Target) -> Masks:
        """Prunes the model in place and returns what was kept, by site name, on the host.

        Weights are written through `BlockInputs.install`, which also records what was done to each.
        """

    def check(self, target: Target) -> None:  # noqa: B027 - most methods can do every target
        """Raises `BadInput` when the method cannot do what the target asks; called before a model is loaded."""


class BlockMethod(Method):
    """A method that works on one block at a time, in order."""

    @torch.no_grad()
    def prune(self, model: PrunableModel, calibration: Calibration, target: Target) -> Masks:
        """Walks the blocks, and calls `prune_block` on those in the target's range."""
        masks = Masks()
        last = max(block.index for block in model.blocks if target.includes(block))
        for block, inputs in walk(model, calibration):
            if target.includes(block):
                masks.update(self.prune_block(block, inputs, target))
            if block.index == last:
                break
        return masks

    @abstractmethod
    def prune_block(self, block: Block, inputs: BlockInputs, target: Target) -> Masks:
        """Prunes one block in place."""


class SiteMethod(BlockMethod):
    """A method that works on one weight at a time, from one statistic of its inputs.

    The statistics of a block are collected in one pass, before any of its weights changes.
    """

    statistic: ClassVar[type[Statistic]]

    def prune_block(self, block: Block, inputs: BlockInputs, target: Target) -> Masks:
        """Collects, prepares each statistic once, and solves for every weight that reads it."""
        masks = Masks()
        for statistic, sites in _by_statistic(inputs.collect(self.statistic, block.sites), block.sites):
            start = time.perf_counter()
            try:
                prepared = self.prepare(statistic)
            except NotPositiveDefinite as error:
                raise NotPositiveDefinite(
                    f"{sites[0].name}: {error}; raise method.damping, or use more calibration tokens (data.samples)"
                ) from error
            for site in sites:
                weight = self.solve(site, prepared, target)
                masks[site.name] = inputs.install(site, weight, time.perf_counter() - start)
                start = time.perf_counter()
        return masks

    def prepare(self, statistic: Any) -> Any:
        """What `solve` gets of a statistic: work done once for all weights that read the same inputs."""
        return statistic

    @abstractmethod
    def solve(self, site: Site, prepared: Any, target: Target) -> Tensor:
        """The pruned weight, ``(out, in)``, any float type; zero where pruned. ``site`` is not changed."""


class DataFreeMethod(Method):
    """A method that chooses from the weights alone; calibration data serve only to measure its error."""

    @torch.no_grad()
    def prune(self, model: PrunableModel, calibration: Calibration, target: Target) -> Masks:
        """Chooses all masks, then applies them block by block."""
        start = time.perf_counter()
        masks = self.choose(target.sites(model), target, calibration.seed)
        seconds = (time.perf_counter() - start) / len(masks)
        last = max(block.index for block in model.blocks if target.includes(block))
        for block, inputs in walk(model, calibration.first_batch()):
            for site in block.sites:
                if site.name in masks:
                    weight = site.weight
                    masks[site.name] = inputs.install(site, weight * masks[site.name].to(weight.device), seconds)
            if block.index == last:
                break
        return masks

    @abstractmethod
    def choose(self, sites: list[Site], target: Target, seed: int) -> Masks:
        """The keep-masks of all sites, ``(out, in)`` each."""


def keep_in_layer(scores: Tensor, target: Target, name: str) -> Tensor:
    """Drops the lowest scores ``(out, in)`` of a whole layer, or of every group for an N:M target."""
    if target.n_of_m:
        return keep_n_of_m(scores, *target.n_of_m)
    return keep_all_but(scores.flatten(), count_dropped(target.of(name), scores.numel())).view_as(scores)


def keep_in_rows(scores: Tensor, target: Target, name: str) -> Tensor:
    """Drops the lowest scores ``(out, in)`` of every row, or of every group for an N:M target."""
    if target.n_of_m:
        return keep_n_of_m(scores, *target.n_of_m)
    return keep_all_but(scores, count_dropped(target.of(name), scores.shape[1]))


def _by_statistic(statistics: dict[str, Any], sites: tuple[Site, ...]) -> Iterator[tuple[Any, list[Site]]]:
    """Each distinct statistic with the sites that share it; ``statistics`` is emptied on the way, to free memory."""
    while statistics:
        statistic = next(iter(statistics.values()))
        shared = [site for site in sites if statistics.get(site.name) is statistic]
        for site in shared:
            del statistics[site.name]
        yield statistic, shared
