"""Evolution: searches for levels by the loss of the whole model."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from prune_lab.errors import BadInput, BadSetting
from prune_lab.models.model import PrunableModel
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.allocation.allocation import (
    Allocation,
    LayerAllocation,
    Workplace,
    describe,
    entries_of,
    total_dropped,
    zeros_of,
)
from prune_lab.pruning.allocation.budget import exact_counts, levels_of
from prune_lab.pruning.allocation.uniform import Uniform
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.methods.layerwise import LayerwiseMethod
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.search.course import Course
from prune_lab.pruning.search.evolution import Evolving, Site, Stage, State
from prune_lab.pruning.search.fitness import KINDS, ModelFitness
from prune_lab.pruning.search.levels import LevelDatabase, level_keys, make_levels
from prune_lab.pruning.search.solving import check_inner
from prune_lab.pruning.search.stitching import Weight, stitching
from prune_lab.pruning.target import Target
from prune_lab.utils.checks import check_choice, check_number, check_seed, check_whole
from prune_lab.utils.collectives import gather
from prune_lab.utils.digests import json_digest

logger = logging.getLogger(__name__)

_MEASURES = {"kl": "KL divergence in nats", "loss": "loss in nats"}


@dataclass
class Evolution(LayerAllocation):
    """Moves sparsity between layers of one size, and keeps what brings the whole model closer to the dense one.

    ``inner`` solves every layer of the dense model at ``max_levels`` levels above and below where the search begins,
    ``step`` apart. A generation makes ``offspring`` copies of the best candidate so far. In each, a few steps are moved
    from one layer to another that has as many weights a step, so that the total stays exact. Stage by stage they are
    scored on more tokens of a fresh sample of the calibration windows and fewer are left; at the last stage the parent
    joins, and the best is the next parent.

    Args:
        inner: what the levels are solved with; by default SparseGPT, whatever prunes in the end.
        initial: where the search begins.
        step: between two levels: a share of the layer's weights if it is below 1, or a whole number of weights.
        max_levels: so many steps a layer may be above or below where it begins.
        generations: how many.
        offspring: in each.
        survivors: of each stage; the last leaves one.
        tokens: that each stage looks at; beyond a window whole windows.
        flips: most steps that are moved in one copy.
        fitness: ``kl``, the forward divergence from the dense model, or ``loss``, the cross-entropy of the text.
        seed: of copies and samples.

    Source: Sieberling et al., 2024, EvoPress, arXiv:2410.14649. Differences: docs/methods/evolution.md.
    """

    inner: LayerwiseMethod = field(default_factory=SparseGPT)
    initial: Allocation = field(default_factory=Uniform)
    step: float = 0.05
    max_levels: int = 4
    generations: int = 120
    offspring: int = 16
    survivors: Sequence[int] = (1, 1)
    tokens: Sequence[int] = (512, 2048)
    flips: int = 3
    fitness: str = "kl"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "step", above=0, hint="a share of the layer below 1, or a number of weights")
        if self.step >= 1 and self.step != int(self.step):
            raise BadSetting(self, "step", "is no whole number of weights; allowed: a share below 1, or such a number")
        check_whole(self, "max_levels", "generations", "offspring", "flips")
        check_choice(self, "fitness", KINDS)
        check_seed(self)
        for name in ("survivors", "tokens"):
            _check_numbers(self, name)
            setattr(self, name, list(getattr(self, name)))
        if len(self.survivors) != len(self.tokens):
            raise BadSetting(
                self,
                "survivors",
                f"has {len(self.survivors)} stages, and {{at}}.tokens {len(self.tokens)}; give as many",
            )
        if self.survivors[-1] != 1 or list(self.survivors) != sorted(self.survivors, reverse=True):
            raise BadSetting(self, "survivors", "is not allowed; allowed: numbers that fall, with 1 as the last")
        if self.survivors[0] > self.offspring:
            raise BadSetting(self, "survivors", f"keeps more than {{at}}.offspring={self.offspring}; lower it")
        check_inner(self)

    def check(self, target: Target) -> None:
        """Whether the levels are to be solved and the search to begin."""
        super().check(target)
        self.inner.check(target)
        self.initial.check(target)

    def check_model(self, model: PrunableModel, target: Target) -> None:
        """Whether the model lies in memory, and there is something to move."""
        super().check_model(model, target)
        self.initial.check_model(model, target)
        if model.mapped is not None:
            raise BadInput(
                "allocation=evolution changes weights all the time, and those of this model stay in their files "
                "(model.stream); use model.stream=false where it fits into memory, or another allocation"
            )
        smallest = min(target.linears(model), key=lambda linear: linear.weight.numel())
        if self._step(smallest.weight.numel()) < 1:
            raise BadSetting(
                self,
                "step",
                f"is less than one weight of {smallest.name}, which has {smallest.weight.numel():,}; raise it",
            )

    def check_calibration(self, calibration: Calibration) -> None:
        """Whether there are as many tokens as a stage looks at."""
        samples, seqlen = calibration.whole_shape
        if max(self.tokens) > samples * seqlen:
            raise BadSetting(
                self,
                "tokens",
                f"asks for more than the {samples * seqlen:,} tokens of the calibration set ({samples} x {seqlen}); "
                "lower it, or raise data.samples",
            )
        self.initial.check_calibration(calibration)

    def budget(
        self, model: PrunableModel, calibration: Calibration, target: Target, place: Workplace | None = None
    ) -> dict[str, float]:
        """Searches; the total is right from the start on."""
        linears = target.linears(model)
        start = self._start(model, calibration, target, linears)
        found = self._search(model, calibration, target, start, place or Workplace())
        return levels_of(found, entries_of(linears))

    def target_levels(self, model: PrunableModel, calibration: Calibration, target: Target) -> Mapping[str, float]:
        """What `budget` finds."""
        return self.budget(model, calibration, target)

    def _start(
        self, model: PrunableModel, calibration: Calibration, target: Target, linears: Sequence[PrunableLinear]
    ) -> dict[str, int]:
        """How many weights of each layer go where the search begins."""
        entries, caps, zeros = entries_of(linears), self.caps(model, target), zeros_of(linears, target)
        budget = self.initial.budget(model, calibration, target)
        begun = Target(level=target.sparsity, budget=budget)
        counts = {name: begun.dropped(name, size) for name, size in entries.items()}
        if all(zeros[name] <= count <= caps[name] for name, count in counts.items()):
            return counts
        levels = {name: count / entries[name] for name, count in counts.items()}
        return exact_counts(levels, entries, caps, total_dropped(linears, target), zeros)

    def _sites(
        self, model: PrunableModel, target: Target, linears: Sequence[PrunableLinear], start: Mapping[str, int]
    ) -> list[Site]:
        """Of each layer the levels around where it begins; layers with as many weights a step are a group."""
        caps, zeros = self.caps(model, target), zeros_of(linears, target)
        sites = []
        for name, size in entries_of(linears).items():
            step = self._step(size)
            around = (start[name] + number * step for number in range(-self.max_levels, self.max_levels + 1))
            costs = [count for count in around if zeros[name] <= count <= caps[name]]
            sites.append(Site(name, tuple(costs), step))
        return sites

    def _step(self, size: int) -> int:
        """How many of a layer's weights lie between two levels."""
        return round(self.step * size) if self.step < 1 else int(self.step)

    def _search(
        self,
        model: PrunableModel,
        calibration: Calibration,
        target: Target,
        start: Mapping[str, int],
        place: Workplace,
    ) -> dict[str, int]:
        """How many weights of each layer go by the best candidate."""
        linears = target.linears(model)
        sites = self._sites(model, target, linears, start)
        counts = {site.name: site.costs for site in sites}
        begin = State(tuple(site.costs.index(start[site.name]) for site in sites))
        keys = level_keys(model, calibration, target, describe(self.inner), counts)
        settings = describe(self) | {"generations": None}
        digest = json_digest([keys, [list(site.costs) for site in sites], settings, list(begin.parent)])
        course = Course(digest, self.generations, _MEASURES[self.fitness], place.progress, place.course, place.plot)
        state = gather(course.begin(begin))[0]  # of several processes the first one has kept it
        if state.generation < self.generations:
            database = make_levels(
                model, calibration, target, self.inner, counts, keys, store=place.store, folder=place.progress
            )
            state = self._evolve(model, calibration, linears, sites, database, begin, state, course)
        course.finish(state)
        return {site.name: site.costs[level] for site, level in zip(sites, state.parent, strict=True)}

    @torch.no_grad()
    def _evolve(
        self,
        model: PrunableModel,
        calibration: Calibration,
        linears: Sequence[PrunableLinear],
        sites: Sequence[Site],
        database: LevelDatabase,
        begin: State,
        state: State,
        course: Course,
    ) -> State:
        """Goes on with the search; the model is in the end as it was."""
        blocks = {linear.name: block.index for block in model.blocks for linear in block.linears}
        with model.placed(calibration.device, whole=True):
            parts = [
                Weight(linear, blocks[linear.name], partial(_solved, database, linear, site))
                for linear, site in zip(linears, sites, strict=True)
            ]
            with stitching(parts) as stitched:
                fitness = ModelFitness(model, calibration, stitched, self.fitness, self.seed)
                stages = [Stage(*each) for each in zip(self.tokens, self.survivors, strict=True)]
                search = Evolving(sites, fitness, stages, self.offspring, self.seed, self.flips)
                course.start_clock()
                state = search.run(state, self.generations, course.note)
                before, after = fitness.on_all(begin.parent), fitness.on_all(state.parent)
        logger.info(
            "%s on all calibration windows: %.4f where the search began, %.4f where it ended",
            *(_MEASURES[self.fitness], before, after),
        )
        return state


def _solved(database: LevelDatabase, linear: PrunableLinear, site: Site, level: int) -> Tensor | None:
    return database.weight(linear, site.costs[level])


def _check_numbers(owner: object, name: str) -> None:
    value = getattr(owner, name)
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not value or not all(type(each) is int and each > 0 for each in value):
        raise BadSetting(
            owner, name, "is not allowed; allowed: a list of whole numbers of at least 1, one a stage, as in [512,2048]"
        )
