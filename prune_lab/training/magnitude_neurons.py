"""Magnitude of neurons: masks those with the smallest weights."""

from dataclasses import dataclass

import torch

from prune_lab.errors import BadInput
from prune_lab.training.base import TrainedMethod
from prune_lab.training.live_mask import LiveMasks, weight_before_mask


@dataclass
class MagnitudeNeurons(TrainedMethod):
    """Scores a neuron by the norm of its weights in all matrices of the network together.

    Args:
        order: of the norm, 1 or 2.

    Source: the L2 baseline of Santacroce et al., 2023, arXiv:2302.03773. Their code scores rows of the up-projection
    and columns of the down-projection apart, so that a neuron may be cut in one and kept in the other, which keeps
    fewer whole neurons than asked for; here both share one score.
    """

    order: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (1, 2):
            raise BadInput(f"method.order={self.order} is not allowed; allowed: 1 and 2")

    @torch.no_grad()
    def refresh(self, live: LiveMasks) -> None:
        """Norms of the weights as they are under the masks."""
        for mask in live:
            parts = mask.units.norms(self.order, weight_before_mask)
            mask.scores.copy_(torch.linalg.vector_norm(parts, self.order, dim=0))
