"""Searches which blocks go together, by evolution: what is missed least alone need not be missed least together."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.partial import Part
from prune_lab.pruning.methods.depth import Candidates, Choice, DepthMethod
from prune_lab.pruning.search.fitness import ModelFitness
from prune_lab.pruning.solvers.evolution import Candidate, Draw, Evolving, Site, Stage, State, check_stages
from prune_lab.utils.checks import check_whole
from prune_lab.utils.finite import or_infinite

logger = logging.getLogger(__name__)


@dataclass
class EvolutionBlocks(DepthMethod):
    """Removes the blocks that a search finds: in each generation, copies of the best choice with a few swapped.

    A copy takes a block back and removes another one. Copies are compared by the divergence of their predictions from
    those of the model before pruning, in stages: each looks at more tokens of a fresh sample of the calibration
    windows, and fewer are left. The search begins at the best of ``starts`` random choices. Of halves of blocks
    (``sparsity=sub_blocks``) as many attentions go as feed-forward networks.

    Args:
        generations: how many.
        offspring: copies in each.
        starts: random choices of which the best is the first parent.
        survivors: of each stage; the last leaves one.
        tokens: that each stage looks at; beyond a window whole windows.
        flips: most blocks that are swapped in one copy.

    Source: EvoPress (Sieberling et al., 2024, arXiv:2410.14649). Its own defaults are ``k (L - k) / 1.5`` generations
    of 32 copies, on 2,048 and 32,768 tokens, for ``k`` of ``L`` blocks, and it removes halves; ours are smaller.
    """

    patterns: ClassVar[frozenset[str]] = frozenset({"blocks", "sub_blocks"})
    generations: int = 40
    offspring: int = 16
    starts: int = 32
    survivors: Sequence[int] = (2, 1)
    tokens: Sequence[int] = (512, 4096)
    flips: int = 3

    def __post_init__(self) -> None:
        check_whole(self, "generations", "offspring", "starts", "flips")
        check_stages(self)

    def choose(self, candidates: Candidates) -> Choice:
        """Goes through the generations."""
        sites = [
            Site(str(unit), (0, 1), unit % candidates.units.of_block)  # attentions apart from feed-forward networks
            for unit in candidates.free
        ]
        seed = candidates.context.seed
        stages = self._stages(candidates.context.calibration)
        with candidates.forward() as forward:
            fitness = ModelFitness(forward, candidates.context.calibration, _LeftOut(candidates), seed=seed)
            starts = random_choices(sites, candidates.wanted, self.starts, seed)
            scored = fitness(starts, starts[0], stages[0].tokens, Draw(0, len(stages)))
            losses = [or_infinite(loss) for loss in scored]
            state = State(starts[min(range(len(starts)), key=losses.__getitem__)])
            search = Evolving(sites, fitness, stages, self.offspring, seed, self.flips)
            state = search.run(state, self.generations, self._say)
        gone = [unit for unit, level in zip(candidates.free, state.parent, strict=True) if level]
        course = [float(f"{each.fitness:.5g}") for each in state.history]
        return Choice(gone, {"kl_of_each_generation": course})

    def _stages(self, calibration: Calibration) -> list[Stage]:
        """The stages of the selection, on no more tokens than there are."""
        samples, seqlen = calibration.whole_shape
        most = samples * seqlen
        if max(self.tokens) > most:
            logger.warning(
                "a stage of the selection should look at %d tokens, and the calibration set has %d: all are taken",
                max(self.tokens), most,
            )  # fmt: skip
        return [Stage(min(tokens, most), left) for tokens, left in zip(self.tokens, self.survivors, strict=True)]

    def _say(self, state: State) -> None:
        found = state.history[-1]
        if found.number % math.ceil(self.generations / 10) == 0 or found.number == self.generations:
            logger.info(
                "generation %d of %d: KL divergence %.4f nats, of its parent %.4f",
                found.number, self.generations, found.fitness, found.parent_fitness,
            )  # fmt: skip


def random_choices(sites: Sequence[Site], wanted: int, number: int, seed: int) -> list[Candidate]:
    """Draws choices of ``wanted`` sites, of each group its share (the first groups one more), all different.

    What a group has too few sites for goes of the others.

    Args:
        sites: of two levels each, of which the second removes.
        wanted: how many go.
        number: of choices, or fewer where there are not as many.
        seed: of the draw.
    """
    groups = sorted({site.group for site in sites}, key=repr)
    members = {group: [index for index, site in enumerate(sites) if site.group == group] for group in groups}
    each, more = divmod(wanted, len(groups))
    counts = {group: min(each + (place < more), len(members[group])) for place, group in enumerate(groups)}
    for group in groups:
        counts[group] += min(wanted - sum(counts.values()), len(members[group]) - counts[group])
    random, found = np.random.default_rng([seed, number]), dict[Candidate, None]()
    for _ in range(10 * number):
        gone = {int(index) for group in groups for index in random.choice(members[group], counts[group], replace=False)}
        found[tuple(int(index in gone) for index in range(len(sites)))] = None
        if len(found) == number:
            break
    return list(found)


@dataclass(frozen=True)
class _LeftOut:
    """The model without the blocks that a candidate removes; see `prune_lab.pruning.search.fitness`."""

    units: Candidates

    def install(self, candidate: Candidate) -> None:
        """No weight changes."""

    def off(self, candidate: Candidate) -> set[Part]:
        gone = (unit for unit, level in zip(self.units.free, candidate, strict=True) if level)
        return self.units.off.union(*map(self.units.parts, gone))

    def first_difference(self, one: Candidate, other: Candidate, blocks: int) -> int:
        return min((block for block, _ in self.off(one) ^ self.off(other)), default=blocks)
