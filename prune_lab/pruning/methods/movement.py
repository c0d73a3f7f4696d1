"""Movement pruning: scores that are learned with the weights."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from prune_lab.pruning.live_mask import LiveMasks
from prune_lab.pruning.methods.trained import TrainedMethod
from prune_lab.utils.checks import check_number


@dataclass
class Movement(TrainedMethod):
    """Learns scores by gradient descent through the masks; a unit whose weights move away from zero rises (Top_v).

    Args:
        lr: learning rate of the scores.

    Source: Sanh et al., 2020, arXiv:2005.07683; on neurons Santacroce et al., 2023, arXiv:2302.03773 (Top_v, also
    called hard movement). Their code keeps all neurons that tie at the cut; here exactly as many go as asked for.
    """

    for_encoders: ClassVar[bool] = True

    scope: str = "global"
    lr: float = 0.01
    learned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "lr", above=0)

    def parameter_groups(self, live: LiveMasks) -> list[dict[str, Any]]:
        """Returns the scores, with their learning rate."""
        return [{"params": live.scores, "lr": self.lr, "weight_decay": 0.0}]


def sigmoid_penalty(live: LiveMasks, weight: float, sparsity: float, final: float) -> Tensor:
    """Returns ``weight * mean sigmoid(S)``, a scalar: the mean over masks of their means, growing with the schedule.

    Args:
        live: the masks.
        weight: at the last step.
        sparsity: of this step.
        final: of the last step.
    """
    share = sparsity / final if final else 1.0
    return weight * share * torch.stack([mask.scores.sigmoid().mean() for mask in live]).mean()
