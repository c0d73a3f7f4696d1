"""OWL: blocks with more outliers among their Wanda scores lose less."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prune_lab.models.block import Block
from prune_lab.models.model import PrunableModel
from prune_lab.pruning.allocation.allocation import LayerAllocation, entries_of
from prune_lab.pruning.calibration.blocks import iterate_blocks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.collect import collect
from prune_lab.pruning.calibration.statistics import InputNorm
from prune_lab.pruning.target import Target
from prune_lab.utils.checks import check_number


@dataclass
class OWL(LayerAllocation):
    """Keeps more of a block the more of its scores ``|W_ij| * ||x_j||`` exceed ``multiple`` times the block's mean.

    With ``D_l`` the share of such scores in block ``l``, the fraction kept is ``2 half_width (D_l - min D) / (max D -
    min D)`` plus the constant that makes the total right, so the levels span exactly ``2 half_width`` (less where one
    is clipped). All layers of a block share its level.

    Args:
        multiple: of the mean, from which a score is an outlier; the paper's M, 5 or 7.
        half_width: half of what lies between the least and the most pruned block; the paper's lambda, 0.08.

    Source: Yin et al., 2023, arXiv:2310.05175, section 3.2. As in the authors' code, the scores are those of the dense
    model. There the levels have the right mean over the blocks; here the right total over the weights, to the weight.
    """

    multiple: float = 5.0
    half_width: float = 0.08

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "multiple", least=0)
        check_number(self, "half_width", least=0, most=0.5)

    @torch.no_grad()
    def target_levels(self, model: PrunableModel, calibration: Calibration, target: Target) -> Mapping[str, float]:
        """Walks the dense model; several processes walk it with a share of the samples each."""
        shares: dict[str, float] = {}
        blocks = [block for block in model.blocks if target.includes(block)]
        for block, inputs in iterate_blocks(model, calibration.divided(), target.end(model)):
            if target.includes(block):
                shares[block.name] = outlier_share(block, collect(inputs, InputNorm), self.multiple)
        levels = spread(shares, target.sparsity, self.half_width)
        return {linear.name: levels[block.name] for block in blocks for linear in block.linears}


def outlier_share(block: Block, norms: Mapping[str, InputNorm], multiple: float) -> float:
    """The share of a block's Wanda scores that exceed ``multiple`` times their mean over the whole block.

    Scores are made one layer at a time, twice: they are never held side by side.
    """
    entries = sum(entries_of(block.linears).values())
    threshold = multiple * sum(float(scores.sum(dtype=torch.float64)) for scores in _scores(block, norms)) / entries
    return sum(int((scores > threshold).count_nonzero()) for scores in _scores(block, norms)) / entries


def spread(shares: Mapping[str, float], sparsity: float, half_width: float) -> dict[str, float]:
    """Levels ``2 half_width`` wide with a mean of ``sparsity``, linear in the shares; the largest gets the least."""
    least, most = min(shares.values()), max(shares.values())
    kept = {name: 2 * half_width * (share - least) / (most - least or 1.0) for name, share in shares.items()}
    mean = sum(kept.values()) / len(kept)
    return {name: sparsity + mean - keep for name, keep in kept.items()}


def _scores(block: Block, norms: Mapping[str, InputNorm]) -> Iterator[Tensor]:
    for linear in block.linears:
        yield linear.weight.float().abs() * norms[linear.name].value  # (out, in)
