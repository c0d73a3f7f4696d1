"""Masks on live weights: the weights stay as they are, what the model computes with is masked."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prune_lab.models.units import Neurons
from prune_lab.models.view import Site


class _StraightThrough(torch.autograd.Function):
    """The mask forward; its gradient goes to the scores as it is."""

    @staticmethod
    def forward(_ctx: torch.autograd.function.FunctionCtx, scores: Tensor, mask: Tensor) -> Tensor:
        return mask.clone()

    @staticmethod
    def backward(_ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class UnitMask(nn.Module):
    """Scores and mask of the units of one layer.

    Args:
        units: whose.
        scores: ``(count,)`` float32.
        learned: whether the scores get gradients, ``dL/dS_i = sum G_ij W_ij`` over all weights of unit i, where G is
            the gradient of the masked weight.
    """

    def __init__(self, units: Neurons, scores: Tensor, *, learned: bool):
        super().__init__()
        self.units = units
        self.scores = nn.Parameter(scores, requires_grad=learned)
        self.register_buffer("mask", torch.ones_like(scores))

    @property
    def keep(self) -> Tensor:
        """``(count,)`` bool on the host."""
        return (self.mask > 0).cpu()

    @torch.no_grad()
    def set(self, keep: Tensor) -> None:
        """Changes the mask, ``(count,)``."""
        self.mask.copy_(keep)

    def forward(self) -> Tensor:
        """The mask, with a gradient to the scores where they are learned."""
        return _StraightThrough.apply(self.scores, self.mask) if self.scores.requires_grad else self.mask


class _Masked(nn.Module):
    """A parametrization that multiplies a weight, as it is stored, by the mask along one dimension."""

    def __init__(self, owner: UnitMask, dim: int):
        super().__init__()
        self._owner = (owner,)  # in a tuple, so that the scores are not parameters of every layer they mask
        self._dim = dim

    def forward(self, weight: Tensor) -> Tensor:
        mask = self._owner[0]() if weight.dim() == 2 else self._owner[0].mask  # a bias gives the scores no gradient
        mask = mask.to(weight.dtype)
        return weight * (mask[:, None] if weight.dim() == 2 and self._dim == 0 else mask)


class LiveMasks:
    """The masks of a model's layers while it is trained; `bake` makes them permanent.

    Args:
        masks: one a layer.
    """

    def __init__(self, masks: Sequence[UnitMask]):
        self.masks = nn.ModuleList(masks)
        self._parametrized: list[tuple[nn.Module, str]] = []
        for mask in masks:
            for site, dim in mask.units.members:
                self._register(site.module, "weight", _Masked(mask, site.stored_dim(dim)))
                if dim == 0 and site.module.bias is not None:
                    self._register(site.module, "bias", _Masked(mask, 0))

    def __iter__(self) -> Iterator[UnitMask]:
        """The mask of each layer."""
        return iter(self.masks)

    @property
    def scores(self) -> list[nn.Parameter]:
        """Those that are learned."""
        return [mask.scores for mask in self.masks if mask.scores.requires_grad]

    def bake(self) -> None:
        """Writes the masked values into the weights, and removes the masks."""
        for module, name in self._parametrized:
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        self._parametrized = []

    def _register(self, module: nn.Module, name: str, masked: _Masked) -> None:
        parametrize.register_parametrization(module, name, masked)
        self._parametrized.append((module, name))


def weight_before_mask(site: Site) -> Tensor:
    """The live weight of a masked site, ``(out, in)``."""
    return site.seen(site.module.parametrizations.weight.original.detach())
