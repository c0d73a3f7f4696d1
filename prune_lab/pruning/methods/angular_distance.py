"""Angular distance: removes the run of blocks over which hidden states turn least (Gromov et al.)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from prune_lab.pruning.methods.depth import Candidates, Choice, DepthMethod, rounded
from prune_lab.utils.checks import check_choice


@dataclass
class AngularDistance(DepthMethod):
    """Removes n blocks in a row, those from ``l`` on for which the hidden state turns least from before to behind them.

    ``d(l, n) = mean arccos(cos(x_l, x_l+n)) / pi``, of the model as it is before pruning.

    Args:
        tokens: whose hidden states are compared: the ``last`` token of each calibration sample, or ``all``.

    Source: Gromov et al., 2024, arXiv:2403.17887; the tuning that follows there is ``finetune=lora``.
    """

    tokens: str = "last"

    def __post_init__(self) -> None:
        check_choice(self, "tokens", ("last", "all"))

    def choose(self, candidates: Candidates) -> Choice:
        """One forward pass over the calibration set."""
        runs = _runs(candidates.free, candidates.wanted)
        total, seen = torch.zeros(len(runs), dtype=torch.float64), 0
        with candidates.forward() as forward:
            for batch in candidates.batches():
                hidden = forward.hidden(batch)
                if self.tokens == "last":
                    hidden = [each[:, -1] for each in hidden]
                total += torch.stack([distance(hidden[run[0]], hidden[run[-1] + 1]).sum().cpu() for run in runs])
                seen += hidden[0][..., 0].numel()
        scores = {run[0]: float(each) / seen for run, each in zip(runs, total, strict=True)}
        best = min(runs, key=lambda run: scores[run[0]])
        return Choice(list(best), {"angular_distance": rounded(scores)})


def distance(before: Tensor, after: Tensor) -> Tensor:
    """The angle between hidden states ``(..., width)`` of any float type as a share of pi, float64 ``(...)``."""
    cosine = functional.cosine_similarity(before.double(), after.double(), dim=-1)
    return cosine.clamp(-1, 1).arccos() / math.pi


def _runs(free: Sequence[int], length: int) -> list[Sequence[int]]:
    """All runs of blocks that follow each other, but for those between them that are gone already."""
    return [free[first : first + length] for first in range(len(free) - length + 1)]
