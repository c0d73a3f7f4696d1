"""Trains a model that is pruned without letting zeros come back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from prune_lab.data.samples import Samples
from prune_lab.models.model import PrunableModel
from prune_lab.pruning.zeros import KeepZeros
from prune_lab.training.hooks import Hooks
from prune_lab.training.loop import fit, trainable_weights
from prune_lab.training.lora import Lora, trained_beside
from prune_lab.training.progress import Progress
from prune_lab.training.series import SeriesLog
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
    unpruned: torch.nn.Module | None = None,
    folder: Path | None = None,
    report: Callable[[int, float], None] | None = None,
    log: SeriesLog | None = None,
) -> Progress:
    """Trains the model, or low-rank updates of its weights; what is zero in a linear layer that was pruned stays zero.

    Args:
        model: changed in place.
        masks: by linear layer or units, what was pruned so far; empty for a dense model.
        training: how.
        samples: what to train on.
        device: where.
        update: what is trained; all weights by default.
        unpruned: the model as it was before it was pruned, the teacher of ``training.distill`` where that names none;
            by default the model as it is. It is on the host afterwards.
        folder: where states are saved.
        report: is told the losses of held-out samples.
        log: is told the course of the training.
    """
    keep = KeepZeros(model, set(masks))
    teacher = make_teacher(model, training, unpruned)
    fitted = partial(fit, model.hf, samples, training, device, teacher=teacher, folder=folder, report=report, log=log)
    try:
        if not isinstance(update, Lora):
            with trainable_weights(model.hf):
                return fitted(hooks=keep)
        with trained_beside(model, update, keep.zero, training.seed):
            return fitted(hooks=_OfUpdate(update))
    finally:
        if unpruned is not None:
            unpruned.to("cpu")


@dataclass
class _OfUpdate(Hooks):
    """Does nothing besides: a low-rank update has its zeros by itself."""

    update: Update

    @property
    def settings(self) -> str:
        """The update, on which a saved state depends."""
        return str(self.update)
