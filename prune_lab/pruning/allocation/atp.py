"""ATP: levels rise from the first block to the last, each by the same difference."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from prune_lab.errors import BadSetting
from prune_lab.models.model import PrunableModel
from prune_lab.pruning.allocation.allocation import LayerAllocation
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.target import Target
from prune_lab.utils.checks import check_number

_ROUNDING = 1e-12


@dataclass
class ATP(LayerAllocation):
    """Block ``l`` of ``L`` loses ``s + difference (l - (L - 1)/2)``, ``l`` from 0: errors made early grow on their way.

    All layers of a block share its level; ``L`` counts the blocks in ``sparsity.layers``.

    Args:
        difference: between one block and the next. The paper tries a few and takes the one of least perplexity.

    Source: Huang et al., 2025, arXiv:2502.14770. Here the total is right over the weights, to the weight; the search
    for the best difference is a sweep (``-m allocation.difference=0.002,0.005,0.01``).
    """

    for_encoders: ClassVar[bool] = True

    difference: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "difference", least=0, most=1)

    def check_model(self, model: PrunableModel, target: Target) -> None:
        """Whether all levels lie in [0, 1)."""
        super().check_model(model, target)
        blocks = sum(target.includes(block) for block in model.blocks)
        levels = progression(blocks, target.sparsity, self.difference)
        if levels[0] < -_ROUNDING or levels[-1] >= 1:
            reach = 2 * min(target.sparsity, 1 - target.sparsity) / (blocks - 1)
            end = "]" if target.sparsity < 0.5 else ")"
            raise BadSetting(
                self,
                "difference",
                f"leads from {levels[0]:.4g} to {levels[-1]:.4g} over {blocks} blocks at "
                f"sparsity.level={target.sparsity:g}; allowed: [0, {reach:.6g}{end}, where all lie in [0, 1)",
            )

    def target_levels(self, model: PrunableModel, calibration: Calibration, target: Target) -> Mapping[str, float]:
        """Needs the number of blocks only."""
        blocks = [block for block in model.blocks if target.includes(block)]
        levels = progression(len(blocks), target.sparsity, self.difference)
        return {linear.name: level for block, level in zip(blocks, levels, strict=True) for linear in block.linears}


def progression(blocks: int, mean: float, difference: float) -> list[float]:
    """An arithmetic progression with a mean."""
    return [mean + difference * (index - (blocks - 1) / 2) for index in range(blocks)]
