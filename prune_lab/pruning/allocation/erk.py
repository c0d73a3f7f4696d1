"""ERK: large layers lose more than small ones, as in a random sparse graph."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from prune_lab.models.model import PrunableModel
from prune_lab.pruning.allocation.allocation import LayerAllocation, entries_of
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.target import Target


@dataclass
class ERK(LayerAllocation):
    """Keeps a number of weights proportional to ``out + in`` of each layer: a density of ``e (out + in)/(out in)``.

    ``e`` is the one at which the total is right; layers that would get more than all their weights stay dense.

    Source: the Erdos-Renyi-Kernel scheme of Evci et al., 2020, arXiv:1911.11134, for layers without a kernel (Mocanu et
    al., 2018). There masks are drawn at random at these densities; here a method chooses them.
    """

    for_encoders: ClassVar[bool] = True

    def target_levels(self, model: PrunableModel, calibration: Calibration, target: Target) -> Mapping[str, float]:
        """Needs the shapes only."""
        linears = target.linears(model)
        sums = {linear.name: sum(linear.shape) for linear in linears}
        return {
            name: 1 - density for name, density in densities(sums, entries_of(linears), 1 - target.sparsity).items()
        }


def densities(sums: Mapping[str, int], entries: Mapping[str, int], density: float) -> dict[str, float]:
    """``min(1, e sums / entries)`` of each layer, with the ``e`` at which the overall density is right.

    Args:
        sums: ``out + in`` of each layer.
        entries: its weights.
        density: the share of all weights that stays.
    """
    dense: set[str] = set()
    while True:  # every turn adds a layer to the dense ones, or is the last
        rest = [name for name in sums if name not in dense]
        if not rest:
            return dict.fromkeys(sums, 1.0)
        kept = density * sum(entries.values()) - sum(entries[name] for name in dense)
        scale = kept / sum(sums[name] for name in rest)
        too_many = {name for name in rest if scale * sums[name] > entries[name]}
        if not too_many:
            return {name: 1.0 if name in dense else scale * sums[name] / entries[name] for name in sums}
        dense |= too_many
