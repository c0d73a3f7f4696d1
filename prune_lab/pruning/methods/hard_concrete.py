"""L0 pruning: gates between 0 and 1 that are drawn anew every step, and closed by a penalty on how many are open."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.models.units import Units
from prune_lab.pruning.live_mask import LiveMasks, UnitMask
from prune_lab.pruning.methods.method import Reaches
from prune_lab.pruning.methods.movement import Movement
from prune_lab.utils.checks import check_number

LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3
_LEAST = 0.01  # the gate of a unit that must stay though its score says that it is closed
_NEVER_CERTAIN = 1e-6  # keeps a draw's logarithm finite


class GateMask(UnitMask):
    """Multiplies units by gates instead of zeros and ones; where the mask drops a unit its gate is shut.

    Args:
        units: whose.
        scores: ``(count,)`` float32.
        generator: draws the gates, on the host; the masks of a model share one, and save its state.
    """

    noise: Tensor  # (count,); of the logistic distribution, 0: none

    def __init__(self, units: Units, scores: Tensor, generator: torch.Generator):
        super().__init__(units, scores, learned=True)
        self._generator = generator
        self.register_buffer("noise", torch.zeros_like(scores))
        self.drawn = False

    @torch.no_grad()
    def draw(self) -> None:
        """Draws new gates for the next step."""
        uniform = torch.rand(self.noise.shape, generator=self._generator).clamp(_NEVER_CERTAIN, 1 - _NEVER_CERTAIN)
        self.noise.copy_(uniform.logit())
        self.drawn = True

    @torch.no_grad()
    def settle(self) -> None:
        """From here on gates are what their scores say, without chance."""
        self.drawn = False

    def forward(self) -> Tensor:
        """The gates, ``(count,)``, with a gradient to the scores where they are neither shut nor fully open."""
        open_ = (self.scores + self.noise).div(TEMPERATURE).sigmoid() if self.drawn else self.scores.sigmoid()
        gates: Tensor = (open_ * (HIGH - LOW) + LOW).clamp(0, 1)
        if not self.drawn:
            gates = gates.clamp_min(_LEAST)
        return gates * self.mask

    def bias_values(self) -> Tensor:
        """The gates."""
        return self.forward().detach()

    def get_extra_state(self) -> Tensor:
        """Returns where the draws are, as the generator tells it."""
        return self._generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Restores `get_extra_state()`."""
        self._generator.set_state(state.cpu())


@dataclass
class HardConcrete(Movement):
    """L0 regularisation with hard concrete gates: ``z = clamp(1.2 sigmoid((S + logit u) / (2/3)) - 0.1, 0, 1)``.

    u is uniform and drawn once a step; all weights of a unit share its gate. The penalty is ``weight`` times the mean
    probability that a gate is not 0, ``sigmoid(S - 2/3 ln(0.1 / 1.1))``, and grows with the schedule. In the end
    ``z = clamp(1.2 sigmoid(S) - 0.1, 0, 1)``; units with z = 0 go, the others are multiplied by z. How many go follows
    from ``weight``; the target's level is only the most that may go of a layer, and a unit that it saves has a gate of
    at least 0.01.

    Args:
        weight: of the penalty.
        init: the first scores; 2.197 opens gates to 0.98.

    Source: Louizos et al., 2018, arXiv:1712.01312; as the code of Santacroce et al., 2023, arXiv:2302.03773, has it.
    """

    patterns: ClassVar[frozenset[str]] = frozenset({"neurons", "heads"})
    scopes: ClassVar[tuple[str, ...]] = ("layer",)
    scope: str = "layer"
    weight: float = 30.0
    lr: float = 0.1
    init: float = 2.197

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "weight", least=0)
        check_number(self, "init")

    @property
    def reaches(self) -> Reaches:
        """Returns that ``weight`` decides how much goes."""
        return "at most"

    def masks_of(self, units: Units, generator: torch.Generator) -> Sequence[UnitMask]:
        """Returns gates, nearly open."""
        return [GateMask(units, torch.full(units.shape, self.init), generator)]

    def update(self, live: LiveMasks, sparsity: float, final: float) -> None:
        """Draws new gates; nothing is dropped for good before the end."""
        for mask in live:
            assert isinstance(mask, GateMask)
            mask.draw()

    @contextmanager
    def measured(self, live: LiveMasks) -> Iterator[None]:
        """Inside, gates are without chance, too."""
        drawn = [mask for mask in live if isinstance(mask, GateMask) and mask.drawn]
        try:
            for mask in drawn:
                mask.drawn = False
            with super().measured(live):
                yield
        finally:
            for mask in drawn:
                mask.drawn = True

    def finish(self, live: LiveMasks, final: float) -> None:
        """Drops units whose gates are shut, but never more than the target says."""
        for mask in live:
            assert isinstance(mask, GateMask)
            mask.settle()
            scores = mask.ranking
            least = self.select_mask({mask.key: scores}, final)[mask.key]
            mask.set((scores.sigmoid() * (HIGH - LOW) + LOW > 0) | least)

    def penalty(self, live: LiveMasks, sparsity: float, final: float) -> Tensor | None:
        """Returns ``weight * mean P(z > 0)``, growing with the schedule."""
        share = sparsity / final if final else 1.0
        shift = TEMPERATURE * math.log(-LOW / HIGH)
        return self.weight * share * torch.stack([(mask.scores - shift).sigmoid().mean() for mask in live]).mean()
