"""A model whose parts are given the levels of one candidate after another, in place."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.calibration.partial import Part as Omitted
from prune_lab.pruning.solvers.evolution import Candidate


class Part(Protocol):
    """A part of a model that can be put at a level, and back: one linear layer, or what else has levels.

    Attributes:
        block: the index of the block that it lies in.
    """

    block: int

    def install(self, level: int) -> None:
        """Puts the part at one of its levels, whichever it is at."""
        ...

    def restore(self) -> None:
        """Puts it back exactly as it was at first."""
        ...


@dataclass
class Weight:
    """A linear layer whose levels are solved weights.

    Args:
        linear: the layer; its weight now is the dense one.
        block: see `Part`.
        solved: reads the weight of a level, ``(out, in)``; ``None`` for the dense one.
    """

    linear: PrunableLinear
    block: int
    solved: Callable[[int], Tensor | None]

    def __post_init__(self) -> None:
        self._dense = self.linear.weight.cpu().clone()

    def install(self, level: int) -> None:
        """Copies the solved weight, or the dense one, into the parameter."""
        weight = self.solved(level)
        if weight is None:
            self.restore()
        else:
            self.linear.write(weight)

    @torch.no_grad()
    def restore(self) -> None:
        """Copies the dense weight back, bit for bit."""
        self.linear.weight.copy_(self._dense)


class Stitched:
    """Remembers what is at which level, so that only what differs between two candidates is copied.

    Args:
        parts: one for each site of the candidates, in their order.
    """

    def __init__(self, parts: Sequence[Part]):
        self.parts = parts
        self._levels: list[int | None] = [None] * len(parts)

    def install(self, candidate: Candidate) -> None:
        """Puts each part at its level."""
        for index, level in enumerate(candidate):
            if self._levels[index] != level:
                self._levels[index] = None  # an interrupted copy is neither
                self.parts[index].install(level)
                self._levels[index] = level

    def off(self, candidate: Candidate) -> Collection[Omitted]:
        """The parts of blocks that a candidate does without: none."""
        return ()

    def restore(self) -> None:
        """Puts all parts back as they were at first."""
        for index, part in enumerate(self.parts):
            part.restore()
            self._levels[index] = None

    def first_difference(self, one: Candidate, other: Candidate, blocks: int) -> int:
        """The index of the first block in which two candidates differ; the number of blocks where they do not."""
        differing = (part.block for part, a, b in zip(self.parts, one, other, strict=True) if a != b)
        return min(differing, default=blocks)


@contextmanager
def stitching(parts: Sequence[Part]) -> Iterator[Stitched]:
    """A stitched model, which is exactly as it was before at the end, however that comes."""
    stitched = Stitched(parts)
    try:
        yield stitched
    finally:
        stitched.restore()
