"""Random pruning: the floor that every other method has to beat."""

import zlib
from dataclasses import dataclass

import torch

from prune_lab.masks import Masks
from prune_lab.methods.base import DataFreeMethod, keep_in_layer
from prune_lab.models.view import Site
from prune_lab.target import Target


@dataclass
class Random(DataFreeMethod):
    """Drops a random choice of each layer's weights, exactly ``floor(s * n)``.

    The choice depends on the run's ``seed`` and the name of the layer only, so it is the same whatever else is pruned.
    """

    def choose(self, sites: list[Site], target: Target, seed: int) -> Masks:
        """Uniform scores, cut per layer."""
        masks = Masks()
        for site in sites:
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {site.name}".encode()))
            masks[site.name] = keep_in_layer(torch.rand(site.shape, generator=generator), target, site.name)
        return masks
