"""Soft movement pruning: learned scores, and a threshold that says how many units go."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prune_lab.pruning.live_mask import LiveMasks
from prune_lab.pruning.methods.method import Reaches
from prune_lab.pruning.methods.movement import Movement, sigmoid_penalty
from prune_lab.utils.checks import check_number


@dataclass
class SoftMovement(Movement):
    """Masks units with ``sigmoid(score)`` of at most a threshold; a penalty on the sigmoids says how many that are.

    How much goes is not set but follows from ``weight``: the target's level is only the most that may go of a layer,
    and the threshold grows with the schedule.

    Args:
        weight: of the penalty, the mean of all sigmoids.
        threshold: the final one, in (0, 1).

    Source: Sanh et al., 2020, arXiv:2005.07683. The penalty is a mean over layers; the code of arXiv:2302.03773 divides
    by three times the number of layers.
    """

    for_encoders: ClassVar[bool] = True
    scopes: ClassVar[tuple[str, ...]] = ("layer",)
    scope: str = "layer"
    weight: float = 100.0
    threshold: float = 0.1
    lr: float = 0.1  # scores start at 0 and must fall to -2.2 to pass the threshold

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "weight", least=0)
        check_number(self, "threshold", above=0, below=1)

    @property
    def reaches(self) -> Reaches:
        """Returns that ``weight`` decides how much goes."""
        return "at most"

    def update(self, live: LiveMasks, sparsity: float, final: float) -> None:
        """Masks the units that are not above the threshold, but never more than the target lets go."""
        for mask in live:
            scores = mask.ranking
            least = self.select_mask({mask.key: scores}, final)[mask.key]
            above = scores.sigmoid() > self.threshold * (sparsity / final if final else 1.0)
            mask.set(above | least)

    def penalty(self, live: LiveMasks, sparsity: float, final: float) -> Tensor | None:
        """Returns ``weight * mean sigmoid(S)``, growing with the threshold."""
        return sigmoid_penalty(live, self.weight, sparsity, final)
