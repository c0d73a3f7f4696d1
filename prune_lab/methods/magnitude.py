"""Magnitude pruning: drops the weights of least absolute value, compared within a layer, a row, or the whole model."""

from dataclasses import dataclass

from prune_lab.errors import BadInput
from prune_lab.masks import Masks, keep_global
from prune_lab.methods.base import DataFreeMethod, keep_in_layer, keep_in_rows
from prune_lab.models.view import Site
from prune_lab.target import Target

SCOPES = ("layer", "row", "model")


@dataclass
class Magnitude(DataFreeMethod):
    """Scores each weight ``|W_ij|``; the kept weights do not change.

    Args:
        scope: where weights compete. ``layer``: ``floor(s * out * in)`` of each layer go, the baseline of the pruning
            papers; ``row``: ``floor(s * in)`` of each row; ``model``: ``floor(s * n)`` of all ``n`` prunable weights.

    Source: the baseline in SparseGPT (arXiv:2301.00774) and Wanda (arXiv:2306.11695). Their code drops every weight up
    to and including the cut, so one more per layer; here the count is exact.
    """

    scope: str = "layer"

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise BadInput(f"method.scope={self.scope!r} is unknown; allowed: {', '.join(SCOPES)}")

    @property
    def by_block(self) -> bool:
        """Not with one cut for the whole model."""
        return self.scope != "model"

    def check(self, target: Target) -> None:
        """One cut for the model leaves nothing for a pattern or a budget to say."""
        if self.scope == "model" and (target.n_of_m or target.budget):
            raise BadInput(
                "method.scope=model sets the sparsity of each layer itself; use scope=layer with N:M or an allocation"
            )

    def choose(self, sites: list[Site], target: Target, seed: int) -> Masks:
        """Cuts the absolute values."""
        if self.scope == "model":
            return keep_global({site.name: site.weight.abs() for site in sites}, target.sparsity)
        keep = keep_in_layer if self.scope == "layer" else keep_in_rows
        masks = Masks()
        for site in sites:
            masks[site.name] = keep(site.weight.abs(), target, site.name)
        return masks
