"""Masks on live weights: the weights stay as they are, what the model computes with is masked."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prune_lab.models.member import Member
from prune_lab.models.units import SingleWeights, Units
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.masks import Masks, keep_n_of_m


class _StraightThrough(torch.autograd.Function):
    """The mask forward; its gradient goes to the scores as it is."""

    @staticmethod
    def forward(_ctx: torch.autograd.function.FunctionCtx, scores: Tensor, mask: Tensor) -> Tensor:
        return mask.to(scores.dtype)

    @staticmethod
    def backward(_ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Entries(torch.autograd.Function):
    """``mask * weight`` with a mask of the weight's shape, where a float copy of the mask would cost what weights do.

    The gradient of the scores is ``G * W``, of masked weights too.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(weight, mask)
        return weight.masked_fill(~mask, 0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weight, mask = ctx.saved_tensors
        needs_weight, needs_scores, _ = ctx.needs_input_grad
        return (
            grads[0].masked_fill(~mask, 0) if needs_weight else None,
            grads[0] * weight if needs_scores else None,
            None,
        )


class UnitMask(nn.Module):
    """Scores and mask of the units of one layer.

    Args:
        units: whose.
        scores: of the shape of the units, float32.
        learned: whether the scores get gradients, ``dL/dS_i = sum G_ij W_ij`` over all weights of unit i, where G is
            the gradient of the masked weight.
        part: tells masks of different members of the same units apart.
        applied: whether the model computes with the mask. ``False``: it computes with the weights as they are, which
            are set to zero by themselves (`clear`), and may grow again; the mask notes which they were.

    Attributes:
        changed: how many entries of the mask the last `set` has changed, a scalar on its device; None before the first.
    """

    mask: Tensor
    zero: Tensor  # units that were nothing but zeros before, and stay so

    def __init__(self, units: Units, scores: Tensor, *, learned: bool, part: str = "", applied: bool = True):
        super().__init__()
        self.units = units
        self.key = f"{units.name}/{part}" if part else units.name
        self.scores = nn.Parameter(scores, requires_grad=learned)
        self.changed: Tensor | None = None
        self.applied = applied
        self.register_buffer("mask", torch.ones_like(scores, dtype=torch.bool))
        self.register_buffer("zero", torch.zeros_like(scores, dtype=torch.bool), persistent=False)

    @property
    def keep(self) -> Tensor:
        """Of the units' shape, bool, on the host."""
        return self.mask.cpu()

    @torch.no_grad()
    def set(self, keep: Tensor) -> None:
        """Changes the mask; units that were zero before stay masked."""
        keep = keep.to(self.mask.device) & ~self.zero
        self.changed = (keep != self.mask).count_nonzero()
        self.mask.copy_(keep)

    @torch.no_grad()
    def clear(self) -> None:
        """Sets the single weights that the mask drops to zero."""
        for member in self.units.members:
            weight_before_mask(member.linear).masked_fill_(~self.mask, 0)

    @torch.no_grad()
    def keep_zeros(self) -> None:
        """Notes which units are nothing but zeros, so that they are the first to go and never come back."""
        self.zero.copy_(self.units.norm(1, weight_before_mask) == 0)
        self.mask.logical_and_(~self.zero)

    @property
    def ranking(self) -> Tensor:
        """The scores by which units are chosen, on their device: those that are zero already have the lowest.

        Of weights that go in an N:M pattern, the N highest of every M have infinite scores: they are safe.
        """
        scores = self.scores.detach().masked_fill(self.zero, -torch.inf)
        return scores if self.n_of_m is None else scores.masked_fill(keep_n_of_m(scores, *self.n_of_m), torch.inf)

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """``(N, M)``, the pattern of single weights; ``None`` for all else."""
        return self.units.n_of_m if isinstance(self.units, SingleWeights) else None

    def forward(self) -> Tensor:
        """What weights of units are multiplied by, with a gradient to the scores where they are learned."""
        if not self.scores.requires_grad:
            return self.mask
        mask: Tensor = _StraightThrough.apply(self.scores, self.mask)  # type: ignore[no-untyped-call]  # torch's
        return mask

    def bias_values(self) -> Tensor:
        """What biases are multiplied by; they give the scores no gradient."""
        return self.mask

    def start_watching(self) -> None:
        """Is called once all masks are on the model; for masks that watch it."""

    def stop_watching(self) -> None:
        """Undoes `start_watching`."""


class _Masked(nn.Module):
    """A parametrization that multiplies a weight, as it is stored, or a bias by the mask of its units."""

    def __init__(self, owner: UnitMask, member: Member):
        super().__init__()
        self._owner = (owner,)  # in a tuple, so that the scores are not parameters of every layer they mask
        self._member = member

    def forward(self, weight: Tensor) -> Tensor:
        owner, member = self._owner[0], self._member
        if not owner.applied:
            return weight
        if member.dim is None:
            scores, mask = member.broadcast(owner.scores), member.broadcast(owner.mask)
            masked: Tensor = _Entries.apply(weight, scores, mask)  # type: ignore[no-untyped-call]  # torch's
            return masked
        if weight.dim() == 1:
            return weight * member.spread(owner.bias_values()).to(weight.dtype)
        return weight * member.broadcast(owner()).to(weight.dtype)


class LiveMasks:
    """The masks of a model's layers while it is trained; `bake` makes them permanent.

    Args:
        masks: one a layer, or several that mask different members of its units.
    """

    def __init__(self, masks: Sequence[UnitMask]):
        self.masks = nn.ModuleList(masks)
        self._parametrized: list[tuple[nn.Module, str]] = []
        for mask in masks:
            for member in mask.units.members:
                self._register(member.linear.module, "weight", _Masked(mask, member))
                if member.bias is not None:
                    self._register(member.linear.module, "bias", _Masked(mask, member))
        for mask in masks:
            mask.start_watching()

    def __iter__(self) -> Iterator[UnitMask]:
        """The masks, layer by layer."""
        for mask in self.masks:
            assert isinstance(mask, UnitMask)
            yield mask

    @property
    def scores(self) -> list[nn.Parameter]:
        """Those that are learned."""
        return [mask.scores for mask in self if mask.scores.requires_grad]

    @property
    def kept(self) -> Masks:
        """By the name of the units, those that no mask drops."""
        kept = Masks()
        for mask in self:
            name = mask.units.name
            kept[name] = kept[name] & mask.keep if name in kept else mask.keep
        return kept

    @property
    def changed(self) -> float:
        """The share of all entries that changed when the masks were set last."""
        counts = [int(mask.changed) for mask in self if mask.changed is not None]
        return sum(counts) / sum(mask.mask.numel() for mask in self)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model computes with all masks, those that only note which weights were set to zero, too."""
        noting = [mask for mask in self if not mask.applied]
        try:
            for mask in noting:
                mask.applied = True
            yield
        finally:
            for mask in noting:
                mask.applied = False

    def bake(self) -> None:
        """Writes the masked values into the weights, and removes the masks."""
        for mask in self:
            mask.stop_watching()
        for module, name in self._parametrized:
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        self._parametrized = []

    def _register(self, module: nn.Module, name: str, masked: _Masked) -> None:
        parametrize.register_parametrization(module, name, masked)
        self._parametrized.append((module, name))


def weight_before_mask(linear: PrunableLinear) -> Tensor:
    """The live weight of a masked linear layer, ``(out, in)``."""
    return linear.seen(linear.module.get_parameter("parametrizations.weight.original").detach())
