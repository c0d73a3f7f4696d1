"""Block influence: removes the blocks that turn their inputs least (ShortGPT)."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from prune_lab.pruning.methods.depth import Candidates, Choice, DepthMethod, rounded


@dataclass
class BlockInfluence(DepthMethod):
    """Scores each block by one minus the mean cosine of the hidden states before and after it; the lowest go at once.

    ``BI_l = 1 - mean_t cos(x_l,t, x_l+1,t)`` over all calibration tokens, of the model as it is before pruning.

    Source: Men et al., 2024, ShortGPT, arXiv:2403.03853.
    """

    def choose(self, candidates: Candidates) -> Choice:
        """One forward pass over the calibration set."""
        totals: Tensor | None = None
        tokens = 0
        with candidates.forward() as forward:
            for batch in candidates.batches():
                hidden = forward.hidden(batch)
                sums = torch.stack([influence(*pair).sum().cpu() for pair in pairwise(hidden)])
                totals, tokens = sums if totals is None else totals + sums, tokens + batch.numel()
        assert totals is not None
        scores = {unit: float(totals[unit]) / tokens for unit in candidates.free}
        order = sorted(candidates.free, key=scores.__getitem__)[: candidates.wanted]
        return Choice(order, {"block_influence": rounded(scores)})


def influence(before: Tensor, after: Tensor) -> Tensor:
    """One minus the cosine of each token's hidden states, ``(..., width)`` of any float type, float64 ``(...)``."""
    return 1 - functional.cosine_similarity(before.float(), after.float(), dim=-1).double()
