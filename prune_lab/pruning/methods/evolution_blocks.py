"""Searches which blocks go together, by evolution: what is missed least alone need not be missed least together."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.partial import Part, PartialForward
from prune_lab.pruning.methods.depth import Candidates, Choice, DepthMethod
from prune_lab.pruning.solvers.evolution import Candidate, Draw, Evolving, Site, Stage, State, check_stages, minibatch
from prune_lab.training.losses import Distillation
from prune_lab.utils.checks import check_whole

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
            fitness = _Divergence(candidates, forward, seed)
            starts = random_choices(sites, candidates.wanted, self.starts, seed)
            losses = fitness(starts, starts[0], stages[0].tokens, Draw(0, len(stages)))
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

    Args:
        sites: of two levels each, of which the second removes.
        wanted: how many go.
        number: of choices, or fewer where there are not as many.
        seed: of the draw.
    """
    groups = sorted({site.group for site in sites}, key=repr)
    members = {group: [index for index, site in enumerate(sites) if site.group == group] for group in groups}
    each, more = divmod(wanted, len(groups))
    counts = {group: each + (place < more) for place, group in enumerate(groups)}
    random, found = np.random.default_rng([seed, number]), dict[Candidate, None]()
    for _ in range(10 * number):
        gone = {
            int(index)
            for group in groups
            for index in random.choice(members[group], min(counts[group], len(members[group])), replace=False)
        }
        found[tuple(int(index in gone) for index in range(len(sites)))] = None
        if len(found) == number:
            break
    return list(found)


class _Divergence:
    """The mean over tokens of the divergence from the model before pruning, in nats."""

    def __init__(self, units: Candidates, forward: PartialForward, seed: int):
        self._units, self._forward, self._seed = units, forward, seed
        self._calibration: Calibration = units.context.calibration
        self._depth = len(units.context.model.blocks)
        last = [forward.hidden(batch)[-1].cpu() for batch in units.batches()]
        self._dense = torch.cat(last)  # (samples, seqlen, hidden)

    def __call__(self, candidates: Sequence[Candidate], parent: Candidate, tokens: int, draw: Draw) -> list[float]:
        windows, length = minibatch(self._calibration.tokens.shape, tokens, [self._seed, *draw])
        seqlen = self._calibration.whole_shape[1]
        at_once = max(1, len(self._calibration.tokens[self._calibration.batches()[0]]) * seqlen // length)
        sums, device = [0.0] * len(candidates), self._calibration.device
        for chunk in np.array_split(windows, -(-len(windows) // at_once)):
            batch = self._calibration.tokens[chunk, :length].to(device)
            goal = self._forward.logits(batch, (), self._depth, self._dense[chunk, :length].to(device))
            before = self._forward.hidden(batch, self._off(parent))  # what enters each block of the parent
            for index, choice in enumerate(candidates):
                sums[index] += batch.numel() * self._divergence(batch, choice, parent, before, goal)
        return [total / (len(windows) * length) for total in sums]

    def _divergence(
        self, batch: Tensor, choice: Candidate, parent: Candidate, before: list[Tensor], goal: Tensor
    ) -> float:
        off = self._off(choice)
        first = min((block for block, _ in off ^ self._off(parent)), default=self._depth)
        logits = self._forward.logits(batch, off, first, before[first])
        return float(Distillation(weight=1.0, temperature=1.0).divergence(logits, goal))

    def _off(self, choice: Candidate) -> set[Part]:
        units = (unit for unit, level in zip(self._units.free, choice, strict=True) if level)
        return self._units.off.union(*map(self._units.parts, units))
