"""An evolutionary search over levels whose total cost stays what it is, or within a limit. Nothing here knows models.

A candidate gives each site one of its levels. A generation makes changed copies of one parent, and scores them in
stages, on more and more tokens, until one is left; that one is the next parent unless the parent is as good.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from prune_lab.errors import BadSetting
from prune_lab.pruning.solvers.limit import Limit
from prune_lab.utils.finite import or_infinite

Candidate = tuple[int, ...]
"""The level of each site, an index into its costs."""

_REDRAWS = 50  # for each child that is wanted, before fewer are taken


@dataclass(frozen=True)
class Site:
    """Something that has a few levels, of which a candidate takes one.

    Args:
        name: what a reader calls it.
        costs: of its levels, in ascending order; whole numbers, such as how many weights go.
        group: cost moves between sites of one group only.
    """

    name: str
    costs: tuple[int, ...]
    group: Hashable = None


@dataclass(frozen=True)
class Stage:
    """A stage of the selection: how many tokens each candidate is scored on, and how many candidates are left."""

    tokens: int
    survivors: int


class Draw(NamedTuple):
    """Says which fresh minibatch is meant: that of a stage of a generation, both from 0."""

    generation: int
    stage: int


class Fitness(Protocol):
    """Scores candidates, all on the same tokens; less is better."""

    def __call__(self, candidates: Sequence[Candidate], parent: Candidate, tokens: int, draw: Draw) -> Sequence[float]:
        """The loss of each candidate.

        Args:
            candidates: what is scored.
            parent: the candidate from which they were made, and from most of which they differ little.
            tokens: how many tokens of the minibatch are looked at.
            draw: determines the minibatch.
        """
        ...


class Generation(NamedTuple):
    """What one generation has given.

    Attributes:
        number: from 1.
        fitness: of the candidate that won the last stage, on that stage's minibatch.
        parent_fitness: of the parent on the same tokens.
        improved: whether the winner is another than the parent.
        evaluations: candidates that were scored so far, each stage counted.
        tokens: they were scored on so far.
    """

    number: int
    fitness: float
    parent_fitness: float
    improved: bool
    evaluations: int
    tokens: int


@dataclass
class State:
    """How far a search is: all that is needed to go on, as random numbers follow from the seed and the generation."""

    parent: Candidate
    history: list[Generation] = field(default_factory=list)

    @property
    def generation(self) -> int:
        """How many generations are done."""
        return len(self.history)


@dataclass(frozen=True)
class Evolving:
    """The search.

    Args:
        sites: what has levels.
        fitness: scores candidates.
        stages: of the selection, at least one; the last leaves one candidate.
        offspring: changed copies of the parent in each generation.
        seed: of every random choice.
        flips: at most so many steps are moved in one copy: the smaller of two numbers drawn from 1 to ``flips``.
        limit: that candidates stay within, in the place of the cost that sites have; ``None``: their cost is kept.

    Source: Sieberling et al., 2024, EvoPress, arXiv:2410.14649, algorithm 1 and section 3.
    """

    sites: Sequence[Site]
    fitness: Fitness
    stages: Sequence[Stage]
    offspring: int
    seed: int = 0
    flips: int = 3
    limit: Limit | None = None

    def run(self, state: State, generations: int, after: Callable[[State], None] = lambda _: None) -> State:
        """Goes on until so many generations are done, or no other candidate can be found.

        Args:
            state: where it stands; not changed.
            generations: in total.
            after: is called after each generation.
        """
        while state.generation < generations:
            number = state.generation
            children = self.children(state.parent, np.random.default_rng([self.seed, number]))
            if not children:
                break
            winner, found = self._select(state, children, number)
            state = State(winner, [*state.history, found])
            after(state)
        return state

    def children(self, parent: Candidate, random: np.random.Generator) -> list[Candidate]:
        """Changed copies of a candidate, all different from it and from each other; fewer where there are not enough.

        Returns:
            At most ``offspring``; the total cost of each is that of the parent, or within the limit.
        """
        seen, found = {parent}, []
        for _ in range(_REDRAWS * self.offspring):
            child = self.mutate(parent, random)
            if child not in seen:
                seen.add(child)
                found.append(child)
            if len(found) == self.offspring:
                break
        return found

    def mutate(self, parent: Candidate, random: np.random.Generator) -> Candidate:
        """Moves a few steps of equal cost from one site of a group to another of it; with a limit, see there."""
        flips = min(random.integers(1, self.flips + 1), random.integers(1, self.flips + 1))
        if self.limit is not None:
            return self.limit.mutate(parent, int(flips), random)
        child = list(parent)
        for _ in range(flips):
            flip = self._flip(child, random)
            if flip is not None:
                lowered, raised = flip
                child[lowered] -= 1
                child[raised] += 1
        return tuple(child)

    def _flip(self, levels: Sequence[int], random: np.random.Generator) -> tuple[int, int] | None:
        """Which site goes down by a level and which goes up; ``None`` where nothing can be moved."""
        down: dict[tuple[Hashable, int], list[int]] = {}  # by group and cost of the step
        up: dict[tuple[Hashable, int], list[int]] = {}
        for index, (site, level) in enumerate(zip(self.sites, levels, strict=True)):
            if level > 0:
                step = site.costs[level] - site.costs[level - 1]
                down.setdefault((site.group, step), []).append(index)
            if level + 1 < len(site.costs):
                step = site.costs[level + 1] - site.costs[level]
                up.setdefault((site.group, step), []).append(index)
        lowered = [
            (index, key) for key, found in down.items() for index in found if set(up.get(key, ())) - {index}
        ]  # groups are drawn in proportion to what can go down in them
        if not lowered:
            return None
        index, key = lowered[random.integers(len(lowered))]
        raised = [each for each in up[key] if each != index]
        return index, raised[random.integers(len(raised))]

    def _select(self, state: State, children: list[Candidate], number: int) -> tuple[Candidate, Generation]:
        """Scores in stages; the parent joins the last one, and stays where no child is better."""
        parent, pool, losses = state.parent, children, [np.inf]
        evaluations, tokens = (state.history[-1].evaluations, state.history[-1].tokens) if state.history else (0, 0)
        for index, stage in enumerate(self.stages):
            if index == len(self.stages) - 1:
                pool = [parent, *pool]
            scored = self.fitness(pool, parent, stage.tokens, Draw(number, index))
            losses = [or_infinite(loss) for loss in scored]
            evaluations, tokens = evaluations + len(pool), tokens + len(pool) * stage.tokens
            if index < len(self.stages) - 1:
                best = sorted(range(len(pool)), key=lambda each: (losses[each], each))
                pool = [pool[each] for each in best[: stage.survivors]]
        best_of_all = min(range(len(pool)), key=lambda each: (losses[each], each))
        found = Generation(
            number + 1, float(losses[best_of_all]), float(losses[0]), best_of_all > 0, evaluations, tokens
        )
        return pool[best_of_all], found


def check_stages(owner: Any) -> None:
    """Checks the fields ``survivors`` and ``tokens`` of a search, which become lists: one number a stage.

    Raises:
        BadSetting: they are no whole numbers, or do not fit together or to the field ``offspring``.
    """
    for name in ("survivors", "tokens"):
        check_numbers(owner, name)
    survivors = owner.survivors
    if len(survivors) != len(owner.tokens):
        raise BadSetting(
            owner, "survivors", f"has {len(survivors)} stages, and {{at}}.tokens {len(owner.tokens)}; give as many"
        )
    if survivors[-1] != 1 or survivors != sorted(survivors, reverse=True):
        raise BadSetting(owner, "survivors", "is not allowed; allowed: numbers that fall, with 1 as the last")
    if survivors[0] > owner.offspring:
        raise BadSetting(owner, "survivors", f"keeps more than {{at}}.offspring={owner.offspring}; lower it")


def check_numbers(owner: Any, name: str, *, least: int = 1, hint: str = "one a stage, as in [512,2048]") -> None:
    """Checks a field that holds whole numbers, and makes it a list.

    Args:
        owner: the component.
        name: of its field.
        least: the smallest number allowed.
        hint: what the numbers are.

    Raises:
        BadSetting: it holds something else.
    """
    value = getattr(owner, name)
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not value or not all(type(each) is int and each >= least for each in value):
        raise BadSetting(owner, name, f"is not allowed; allowed: a list of whole numbers of at least {least}, {hint}")
    setattr(owner, name, list(value))


def total_cost(sites: Sequence[Site], candidate: Candidate) -> int:
    """The cost of a candidate."""
    return sum(site.costs[level] for site, level in zip(sites, candidate, strict=True))


def minibatch(shape: Sequence[int], tokens: int, seed: Sequence[int]) -> tuple[np.ndarray, int]:
    """Draws the windows of a minibatch, without replacement.

    Args:
        shape: samples and tokens a sample of the whole set.
        tokens: how many are wanted. Fewer than a window has: that many from the beginning of one window; more: so many
            whole windows that there are at least as many tokens.
        seed: of the draw.

    Returns:
        The numbers of the windows, and how many tokens of each are looked at, from its first.

    Raises:
        ValueError: there are not so many.
    """
    samples, seqlen = shape
    number, length = -(-tokens // seqlen), min(tokens, seqlen)
    if number > samples:
        raise ValueError(f"{tokens} tokens are more than {samples} x {seqlen}")
    return np.sort(np.random.default_rng(seed).choice(samples, number, replace=False)), length
