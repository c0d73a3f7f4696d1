"""Units that are removed whole: the hidden neurons of a block's feed-forward network."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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

    def norms(self, order: float) -> tuple[Tensor, ...]:
        """The norm of each neuron's part of every member, ``(count,)`` float32 each."""
        return tuple(torch.linalg.vector_norm(site.weight.float(), order, dim=1 - dim) for site, dim in self.members)

    def sizes(self) -> int:
        """How many weights and biases one neuron has."""
        return sum(site.shape[1 - dim] + (dim == 0 and site.bias is not None) for site, dim in self.members)

    @torch.no_grad()
    def apply(self, keep: Tensor) -> None:
        """Sets what belongs to the other neurons to zero; ``keep`` ``(count,)`` bool."""
        for site, dim in self.members:
            mask = keep.to(site.weight.device)
            site.weight.mul_(mask[:, None] if dim == 0 else mask)
            if dim == 0 and site.bias is not None:
                site.bias.mul_(mask)

    @torch.no_grad()
    def resize(self, keep: Tensor) -> None:
        """Removes the other neurons; the layers hold ``keep.sum()`` of them afterwards."""
        index = keep.nonzero().flatten()
        for site, dim in self.members:
            chosen = index.to(site.weight.device)
            stored = dim if isinstance(site.module, nn.Linear) else 1 - dim  # Conv1D stores (in, out)
            module = site.module
            module.weight = nn.Parameter(module.weight.detach().index_select(stored, chosen).clone(), False)
            if dim == 0 and module.bias is not None:
                module.bias = nn.Parameter(module.bias.detach()[chosen].clone(), False)
            _tell_width(module, dim, len(index))


def neurons_of(block: Block) -> Neurons:
    """The neurons of a block."""
    return Neurons(f"{block.name}.neurons", block.mlp, block.mlp.down.shape[1])


def all_neurons(model: PrunableModel) -> list[Neurons]:
    """Those of every block, in order."""
    return [neurons_of(block) for block in model.blocks]


def _tell_width(module: nn.Module, dim: int, width: int) -> None:
    """Layers keep their width as a number too."""
    name = ("out_features" if dim == 0 else "in_features") if isinstance(module, nn.Linear) else ("nf", "nx")[dim]
    setattr(module, name, width)
