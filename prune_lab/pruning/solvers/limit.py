"""Changes levels of sites so that what they spend together stays within a limit, such as seconds or parameters."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Limit:
    """What the levels of all sites may spend together.

    Attributes:
        spent: by site, what each of its levels spends.
        most: that is allowed.
        saving: the direction in which a site's level moves to spend less: 1, as with the seconds of a model that loses
            units, or -1, as with the parameters that it loses. That is the rule: measured seconds may not keep to it.
    """

    spent: Sequence[Sequence[float]]
    most: float
    saving: Literal[1, -1] = 1

    def fits(self, levels: Sequence[int]) -> bool:
        """Whether a candidate spends no more than is allowed."""
        return self._total(levels) <= self.most * (1 + 1e-9)  # as sums of the same numbers may differ by

    def mutate(self, parent: Sequence[int], moves: int, random: np.random.Generator) -> tuple[int, ...]:
        """Moves random sites by a level each, all up or all down, and makes up for it at others.

        While too much is spent, others save a step; then others spend one more as long as one fits in. So one large
        step is exchanged for several small ones, and little of what is allowed is left over.

        Args:
            parent: fits.
            moves: at most so many sites are moved first.
            random: draws.

        Returns:
            Levels that fit; the parent's, where the others cannot save enough.
        """
        child, moved, direction = list(parent), set[int](), int(random.choice((-1, 1)))
        for _ in range(moves):
            if open_ := self._movable(child, direction, moved):
                chosen = open_[random.integers(len(open_))]
                child[chosen] += direction
                moved.add(chosen)
        while not self.fits(child):
            open_ = self._movable(child, self.saving, moved)
            if not open_:
                return tuple(parent)
            child[open_[random.integers(len(open_))]] += self.saving
        while open_ := [index for index in self._movable(child, -self.saving, moved) if self._fits_more(child, index)]:
            child[open_[random.integers(len(open_))]] -= self.saving
        return tuple(child)

    def _movable(self, levels: Sequence[int], direction: int, moved: Collection[int]) -> list[int]:
        """The sites that have another level in a direction, without those that were moved."""
        return [
            index
            for index, (level, spent) in enumerate(zip(levels, self.spent, strict=True))
            if index not in moved and 0 <= level + direction < len(spent)
        ]

    def _fits_more(self, levels: Sequence[int], index: int) -> bool:
        return self.fits([*levels[:index], levels[index] - self.saving, *levels[index + 1 :]])

    def _total(self, levels: Sequence[int]) -> float:
        return sum(spent[level] for spent, level in zip(self.spent, levels, strict=True))
