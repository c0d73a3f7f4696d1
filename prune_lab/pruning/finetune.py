"""Trains a model that is pruned without letting zeros come back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prune_lab.data.samples import Samples
from prune_lab.models.model import PrunableModel
from prune_lab.models.units import removable
from prune_lab.training.hooks import Hooks
from prune_lab.training.loop import fit, trainable_weights
from prune_lab.training.lora import Lora, trained_beside
from prune_lab.training.progress import Progress
from prune_lab.training.settings import Training
from prune_lab.training.teacher import make_teacher
from prune_lab.training.updates import Update


def tune(
    model: PrunableModel,
    masks: Mapping[str, Tensor],
    training: Training,
    samples: Samples,
    device: torch.device,
    *,
    update: Update | None = None,
    folder: Path | None = None,
    report: Callable[[int, float], None] | None = None,
) -> Progress:
    """Trains the model, or low-rank updates of its weights; what is zero in a linear layer that was pruned stays zero.

    Args:
        model: changed in place.
        masks: by linear layer or units, what was pruned so far; empty for a dense model.
        training: how.
        samples: what to train on.
        device: where.
        update: what is trained; all weights by default.
        folder: where states are saved.
        report: is told the losses of held-out samples.
    """
    keep = _KeepZeros(model, set(masks))
    teacher = make_teacher(model, training)
    if not isinstance(update, Lora):
        with trainable_weights(model.hf):
            return fit(model.hf, samples, training, device, hooks=keep, teacher=teacher, folder=folder, report=report)
    hooks = _OfUpdate(update)
    with trained_beside(model, update, keep.zero, training.seed):
        return fit(model.hf, samples, training, device, hooks=hooks, teacher=teacher, folder=folder, report=report)


@dataclass
class _OfUpdate(Hooks):
    """Does nothing besides: a low-rank update has its zeros by itself."""

    update: Update

    @property
    def settings(self) -> str:
        """The update, on which a saved state depends."""
        return str(self.update)


class _KeepZeros(Hooks):
    """Gives weights that were pruned no gradient, so that they stay zero, and what the optimizer knows of them too.

    Attributes:
        zero: by linear layer, ``(out, in)`` bool on the host.
    """

    def __init__(self, model: PrunableModel, pruned: set[str]):
        touched = {member.linear for units in removable(model) if units.name in pruned for member in units.members}
        linears = [linear for linear in model.linears if linear.name in pruned or linear in touched]
        self.zero = {linear.name: linear.weight == 0 for linear in linears}
        self._kept = [(linear.module.weight, linear.seen(self.zero[linear.name])) for linear in linears]
        biases = [linear.module.bias for linear in linears if linear in touched and linear.module.bias is not None]
        self._kept += [(bias, bias.detach() == 0) for bias in biases]

    @torch.no_grad()
    def after_backward(self) -> None:
        """Before the optimizer sees them."""
        for number, (parameter, zero) in enumerate(self._kept):
            if parameter.grad is not None:
                if zero.device != parameter.device:
                    zero = zero.to(parameter.device)
                    self._kept[number] = (parameter, zero)
                parameter.grad.masked_fill_(zero, 0)
