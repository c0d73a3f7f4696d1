"""Zeros of a model's prunable weights: where they are, and what keeps them while the model is trained."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prune_lab.errors import RunFailed
from prune_lab.models.model import PrunableModel
from prune_lab.models.model_units import removable
from prune_lab.models.units import Experts
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.masks import Masks, zeros_in
from prune_lab.training.hooks import Hooks
from prune_lab.utils.finite import all_finite

if TYPE_CHECKING:  # PyTorch's FSDP takes a second to import
    from prune_lab.training.sharded import Shards


def masks_of_zeros(model: PrunableModel) -> Masks:
    """Returns the keep-masks ``(out, in)`` of the linear layers in which weights are zero, by name."""
    masks = Masks()
    for linear in model.linears:
        zero = zeros_in(linear.weight)
        if zero is not None:
            masks[linear.name] = ~zero
    return masks


def check_zeros(model: PrunableModel, masks: Mapping[str, Tensor], what: str) -> None:
    """Checks that no weight has come back.

    Args:
        model: as it is now.
        masks: keep-masks ``(out, in)`` by linear layer, from before; other names are left alone.
        what: was done since, for the message.

    Raises:
        RunFailed: a weight that was zero is not; the message names its layer.
    """
    for linear in model.linears:
        if linear.name not in masks:
            continue
        zero = ~masks[linear.name].to(linear.weight.device)
        back = int((linear.weight[zero] != 0).count_nonzero())
        if back:
            raise RunFailed(
                f"{linear.name}: {back} of {int(zero.count_nonzero())} weights that were zero before {what} are not "
                "zero after it; that is a fault of the method, not of the settings"
            )


def check_finite(model: PrunableModel, what: str) -> None:
    """Checks that every weight is a finite number.

    Raises:
        RunFailed: one is not; the message names it.
    """
    for name, tensor in model.tensors:
        if not all_finite(tensor):
            raise RunFailed(
                f"{name}: there are NaN or infinite values after {what}; use model.dtype=float32, or smaller steps "
                "(training.lr) where the model was trained"
            )


class KeepZeros(Hooks):
    """Gives weights that are zero no gradient, so that they stay zero, and what the optimizer knows of them too.

    Args:
        model: before it is trained, and before anything is put on its weights.
        names: of the linear layers or units whose zeros stay; all their linear layers', and the biases' of units.

    Attributes:
        zero: by linear layer, ``(out, in)`` bool on the host; empty once weights are divided among processes.
    """

    def __init__(self, model: PrunableModel, names: Collection[str]):
        units = [each for each in removable(model) if each.name in names]
        touched = {member.linear for each in units for member in each.members}
        linears = [linear for linear in model.linears if linear.name in names or linear in touched]
        linears += [each.moe.router for each in units if isinstance(each, Experts)]
        holders: dict[int, tuple[Tensor, Tensor]] = {}  # parameters, each of one or more linear layers
        self.zero = {}
        for linear in linears:
            _, stored = holders.setdefault(id(linear.parameter), (linear.parameter, _nowhere(linear.parameter)))
            self.zero[linear.name] = linear.seen(stored).copy_(linear.weight == 0)
        self._kept = list(holders.values())
        self._kept += [(bias, bias.detach() == 0) for bias in _biases(linears, touched)]

    def follow(self, shards: "Shards") -> None:
        """Divides the masks as the weights are: every process keeps the part of its rows."""
        self._kept = [(shards.of(parameter), shards.like(parameter, zero)) for parameter, zero in self._kept]
        self.zero = {}

    @torch.no_grad()
    def after_backward(self) -> None:
        """Before the optimizer sees them."""
        for parameter, zero in self._on_device():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(zero, 0)

    @torch.no_grad()
    def restore(self) -> None:
        """Sets to zero again what was, whatever has been written since."""
        for parameter, zero in self._on_device():
            parameter.masked_fill_(zero, 0)

    def _on_device(self) -> list[tuple[Tensor, Tensor]]:
        self._kept = [(parameter, zero.to(parameter.device)) for parameter, zero in self._kept]
        return self._kept


def _nowhere(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, dtype=torch.bool)


def _biases(linears: Collection[PrunableLinear], touched: Collection[PrunableLinear]) -> list[Tensor]:
    return [linear.module.bias for linear in linears if linear in touched and linear.bias is not None]
