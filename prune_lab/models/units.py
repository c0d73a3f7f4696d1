"""Units that are removed whole: the hidden neurons of a block's feed-forward network."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor

from prune_lab.models.view import Block, Mlp, PrunableModel, Site


@dataclass(frozen=True, eq=False)
class Neurons:
    """The hidden neurons of one feed-forward network.

    Neuron i is row i of the up-projection (and of the gate) with its bias, and column i of the down-projection.
    """

    name: str
    mlp: Mlp
    count: int  # fixed when the view is made: under a live mask a weight's shape costs its computation

    @property
    def members(self) -> Iterator[tuple[Site, int]]:
        """Each site with the dimension of ``(out, in)`` along which the neurons lie."""
        for site in self.mlp.sites:
            yield site, 1 if site is self.mlp.down else 0

    def norms(self, order: float, weight: Callable[[Site], Tensor] = attrgetter("weight")) -> Tensor:
        """The norm of each neuron's part of every member, ``(members, count)`` float32.

        Args:
            order: of the norm.
            weight: what to measure of a site, ``(out, in)``.
        """
        return torch.stack(
            [torch.linalg.vector_norm(weight(site).float(), order, dim=1 - dim) for site, dim in self.members]
        )

    @torch.no_grad()
    def apply(self, keep: Tensor) -> None:
        """Sets what belongs to the other neurons to zero; ``keep`` ``(count,)`` bool."""
        for site, dim in self.members:
            mask = keep.to(site.weight.device)
            site.weight.mul_(mask[:, None] if dim == 0 else mask)
            if dim == 0 and site.bias is not None:
                site.bias.mul_(mask)

    def resize(self, keep: Tensor) -> None:
        """Removes the other neurons; the layers hold ``keep.sum()`` of them afterwards."""
        index = keep.nonzero().flatten()
        for site, dim in self.members:
            site.select(dim, index)


def neurons_of(block: Block) -> Neurons:
    """The neurons of a block."""
    return Neurons(f"{block.name}.neurons", block.mlp, block.mlp.down.shape[1])


def all_neurons(model: PrunableModel) -> list[Neurons]:
    """Those of every block, in order."""
    return [neurons_of(block) for block in model.blocks]
