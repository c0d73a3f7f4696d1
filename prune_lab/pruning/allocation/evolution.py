"""Evolution: searches for levels by the loss of the whole model."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.errors import BadInput, BadSetting
from prune_lab.models.model import PrunableModel
from prune_lab.pruning.allocation.allocation import (
    Allocation,
    LayerAllocation,
    Workplace,
    describe,
    total_dropped,
)
from prune_lab.pruning.allocation.budget import exact_counts, levels_of
from prune_lab.pruning.allocation.uniform import Uniform
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.partial import PartialForward
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.methods.unitwise import UnitMethod
from prune_lab.pruning.search.course import Course
from prune_lab.pruning.search.fitness import KINDS, ModelFitness
from prune_lab.pruning.search.layers import Inner, Layer, check_method, check_solves, layers_of, limit_of, topped_up
from prune_lab.pruning.search.levels import LevelDatabase, level_keys, make_levels
from prune_lab.pruning.search.short_training import ShortTraining, check_train_tokens, check_train_windows
from prune_lab.pruning.search.stitching import Weight, stitching
from prune_lab.pruning.solvers.evolution import Evolving, Site, Stage, State, check_stages
from prune_lab.pruning.solvers.limit import Limit
from prune_lab.pruning.target import Target
from prune_lab.pruning.unit_counts import uniform_counts
from prune_lab.utils.checks import check_choice, check_number, check_seed, check_whole
from prune_lab.utils.collectives import gather, rank
from prune_lab.utils.digests import json_digest

logger = logging.getLogger(__name__)

_MEASURES = {"kl": "KL divergence in nats", "loss": "loss in nats"}


@dataclass
class Evolution(LayerAllocation):
    """Moves sparsity between layers of one size, and keeps what brings the whole model closer to the dense one.

    Layers are linear layers of which single weights go, or the neurons or the heads of a block. ``inner`` solves every
    layer of the dense model at ``max_levels`` levels above and below where the search begins, ``step`` apart. A
    generation makes ``offspring`` copies of the best candidate so far. In each, a few steps move from one layer to
    another whose steps have as many parameters, so that the total stays exact; neurons and heads together, and a target
    of time, exchange steps of all layers within the parameters or seconds that are asked for. Stage by stage they are
    scored on more tokens of a fresh sample of the calibration windows and fewer are left; at the last stage the parent
    joins, and the best is the next.

    Args:
        inner: what the levels are solved with; by default SparseGPT, whatever prunes in the end. Of neurons and heads
            it is a method that removes them, such as ZipLM.
        initial: where the search begins.
        step: between two levels: if it is below 1 a share of the layer's weights, neurons or heads (of which it is at
            least one), or else a whole number of them.
        max_levels: so many steps a layer may be above or below where it begins.
        generations: how many, of each round.
        offspring: in each.
        survivors: of each stage; the last leaves one.
        tokens: that each stage looks at; beyond a window whole windows.
        flips: most steps that are moved in one copy.
        train_tokens: that each candidate is trained on before a stage scores it, one number a stage, 0: none at that
            stage; ``None``: no candidate is trained.
        train_lr: the learning rate of that.
        rounds: of the search. Each after the first begins at what the one before has found, with levels around it that
            are half as far apart.
        fitness: ``kl``, the forward divergence from the dense model, or ``loss``, the cross-entropy of the text.
        seed: of copies and samples.

    Source: Sieberling et al., 2024, EvoPress, arXiv:2410.14649. Differences: docs/methods/evolution.md.
    """

    divides_time: ClassVar[bool] = True
    inner: Inner = field(default_factory=SparseGPT)
    initial: Allocation = field(default_factory=Uniform)
    step: float = 0.05
    max_levels: int = 4
    generations: int = 120
    offspring: int = 16
    survivors: Sequence[int] = (1, 1)
    tokens: Sequence[int] = (512, 2048)
    flips: int = 3
    train_tokens: Sequence[int] | None = None
    train_lr: float = 1e-5
    rounds: int = 1
    fitness: str = "kl"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "step", above=0, hint="a share of the layer below 1, or a number of weights")
        if self.step >= 1 and self.step != int(self.step):
            raise BadSetting(self, "step", "is no whole number of weights; allowed: a share below 1, or such a number")
        check_whole(self, "max_levels", "generations", "offspring", "flips", "rounds")
        check_number(self, "train_lr", above=0)
        check_choice(self, "fitness", KINDS)
        check_seed(self)
        check_stages(self)
        check_train_tokens(self)
        check_solves(self)

    def check(self, target: Target) -> None:
        """Whether the levels are to be solved and the search to begin."""
        if target.kind not in UnitMethod.patterns:
            super().check(target)
        elif not isinstance(self.initial, Uniform):
            raise BadSetting(
                self, "initial", f"divides single weights; with {target.kind} use allocation@{{at}}.initial=uniform"
            )
        if self.max_level is not None and target.speedup is None:
            self.check_level(target)
        check_method(self, target)
        self.inner.check(target)
        self.initial.check(target)

    def least_kept(self, target: Target) -> int | None:
        """What the method keeps that solves the levels."""
        return self.inner.least_kept if target.removes_units else None

    def check_model(self, model: PrunableModel, target: Target) -> None:
        """Whether the model lies in memory, and there is something to move."""
        if not target.removes_units:
            super().check_model(model, target)
        self.initial.check_model(model, target)
        self.inner.check_model(model, target)
        if model.mapped is not None:
            raise BadInput(
                "allocation=evolution changes weights all the time, and those of this model stay in their files "
                "(model.stream); use model.stream=false where it fits into memory, or another allocation"
            )
        smallest = min(layers_of(model, target), key=lambda layer: layer.entries)
        if smallest.step(self.step, self.rounds) < 1:
            halved, remedy = "", "raise it"
            if self.rounds > 1:
                halved, remedy = f"halved {self.rounds - 1} times ", "raise it, or lower {at}.rounds"
            raise BadSetting(
                self,
                "step",
                f"{halved}is less than one weight of {smallest.name}, which has {smallest.entries:,}; {remedy}",
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
        check_train_windows(self, calibration)
        self.initial.check_calibration(calibration)

    def budget(
        self, model: PrunableModel, calibration: Calibration, target: Target, place: Workplace | None = None
    ) -> dict[str, float]:
        """Searches; the total is right from the start on."""
        layers = layers_of(model, target)
        start = self._start(model, calibration, target, layers)
        alone = rank() == 0  # one process searches for all, as the levels are as large as the model
        found = gather(self._search(model, calibration, target, layers, start, place or Workplace()) if alone else None)
        return levels_of(found[0], {layer.name: layer.entries for layer in layers})

    def target_levels(self, model: PrunableModel, calibration: Calibration, target: Target) -> Mapping[str, float]:
        """What `budget` finds."""
        return self.budget(model, calibration, target)

    def _start(
        self, model: PrunableModel, calibration: Calibration, target: Target, layers: Sequence[Layer]
    ) -> dict[str, int]:
        """How many entries of each layer go where the search begins."""
        if target.removes_units:
            return uniform_counts(target.units(model), target, self.inner.least_kept)
        entries, caps = {layer.name: layer.entries for layer in layers}, self.caps(model, target)
        zeros = {layer.name: layer.zeros for layer in layers}
        budget = self.initial.budget(model, calibration, target)
        begun = Target(level=target.sparsity, budget=budget)
        counts = {name: begun.dropped(name, size) for name, size in entries.items()}
        if all(zeros[name] <= count <= caps[name] for name, count in counts.items()):
            return counts
        levels = {name: count / entries[name] for name, count in counts.items()}
        return exact_counts(levels, entries, caps, total_dropped(target.linears(model), target), zeros)

    def _counts(
        self, model: PrunableModel, target: Target, layers: Sequence[Layer], start: Mapping[str, int], number: int
    ) -> dict[str, list[int]]:
        """How many entries of each layer go at its levels, which lie around where a round begins."""
        caps, counts = self.caps(model, target), {}
        for layer in layers:
            step, begin = layer.step(self.step, number), start[layer.name]
            around = (begin + steps * step for steps in range(-self.max_levels, self.max_levels + 1))
            least = min(layer.zeros, begin)
            counts[layer.name] = [count for count in around if least <= count <= max(caps[layer.name], begin)]
        return counts

    def caps(self, model: PrunableModel, target: Target) -> dict[str, int]:
        """How many entries of each layer may go at most."""
        if not target.removes_units:
            return super().caps(model, target)
        return {each.name: each.most_units(self.inner.least_kept, self.max_level) for each in layers_of(model, target)}

    def _search(
        self,
        model: PrunableModel,
        calibration: Calibration,
        target: Target,
        layers: Sequence[Layer],
        start: Mapping[str, int],
        place: Workplace,
    ) -> dict[str, int]:
        """How many entries of each layer go by the best candidate of the last round."""
        found, state = dict(start), State(())
        course = Course(
            self.rounds * self.generations, _MEASURES[self.fitness], place.progress, place.course, place.plot
        )
        for number in range(1, self.rounds + 1):
            if number > 1:
                logger.info("round %d of %d: levels half as far apart, around what was found", number, self.rounds)
            counts = self._counts(model, target, layers, found, number)
            begin = State(tuple(counts[layer.name].index(found[layer.name]) for layer in layers), state.history)
            state = self._round(model, calibration, target, layers, counts, begin, number, course, place)
            found = {layer.name: counts[layer.name][level] for layer, level in zip(layers, state.parent, strict=True)}
        course.finish(state)
        return topped_up(target, layers, found, self.caps(model, target))

    def _round(
        self,
        model: PrunableModel,
        calibration: Calibration,
        target: Target,
        layers: Sequence[Layer],
        counts: Mapping[str, Sequence[int]],
        begin: State,
        number: int,
        course: Course,
        place: Workplace,
    ) -> State:
        """Solves the levels of a round, and searches among them."""
        sites = [layer.site(counts[layer.name], layer.step(self.step, number)) for layer in layers]
        keys = level_keys(model, calibration, target, describe(self.inner), layers, counts)
        settings = describe(self) | {"generations": None, "rounds": None}
        limit = limit_of(target, layers, counts)
        digest = json_digest([keys, counts, settings, list(begin.parent), begin.generation, limit and asdict(limit)])
        state = course.begin(begin, digest, number)
        if state.generation < begin.generation + self.generations:
            database = make_levels(
                model, calibration, target, self.inner, layers, counts, keys, store=place.store, folder=place.progress
            )
            solved = {layer: partial(_solved, database, layer, counts[layer.name]) for layer in layers}
            state = self._evolve(model, calibration, solved, sites, limit, begin, state, course)
        return state

    @torch.no_grad()
    def _evolve(
        self,
        model: PrunableModel,
        calibration: Calibration,
        solved: Mapping[Layer, Callable[[int], Tensor | None]],
        sites: Sequence[Site],
        limit: Limit | None,
        begin: State,
        state: State,
        course: Course,
    ) -> State:
        """Goes on with the search; the model is in the end as it was."""
        with model.placed(calibration.device, whole=True) as hf, PartialForward(model, hf) as forward:
            parts = [Weight(layer.linear, layer.block, read) for layer, read in solved.items()]
            with stitching(parts) as stitched:
                training = None
                if self.train_tokens is not None:
                    training = ShortTraining(
                        model, forward, calibration, self.train_tokens, self.train_lr, self.seed, self
                    )
                fitness = ModelFitness(forward, calibration, stitched, self.fitness, self.seed, training)
                stages = [Stage(*each) for each in zip(self.tokens, self.survivors, strict=True)]
                search = Evolving(sites, fitness, stages, self.offspring, self.seed, self.flips, limit)
                course.start_clock()
                state = search.run(state, begin.generation + self.generations, course.note)
                before, after = fitness.on_all(begin.parent), fitness.on_all(state.parent)
        logger.info(
            "%s on all calibration windows: %.4f where the %s began, %.4f where it ended",
            *(_MEASURES[self.fitness], before, "search" if self.rounds == 1 else "round", after),
        )
        return state


def _solved(database: LevelDatabase, layer: Layer, counts: Sequence[int], level: int) -> Tensor | None:
    return database.weight(layer.linear, counts[level])
