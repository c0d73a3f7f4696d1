"""Samples that are not trained on: their loss on the way, and an early end when it no longer falls."""

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from prune_lab.data.samples import Samples
from prune_lab.training.losses import mean_loss

logger = logging.getLogger(__name__)


class HeldOut:
    """Measures the loss of held-out samples, and keeps the best weights where a training may end early.

    Args:
        samples: that are held out; none: nothing is measured.
        every: steps between two measurements.
        patience: measurements without a lower loss after which to end; null: never.
        batch_size: samples a forward pass.
        report: is told every loss, with the steps before it; may raise `TrialStopped`.
        agreed: makes of this process' loss the one of all of them, which must end at the same step.
        placed: puts the weights that are to be measured in the place of those that are trained, inside.
        improved: is told the model, with those weights in place, and the steps, where the loss is lower than ever.
    """

    def __init__(
        self,
        samples: Samples,
        every: int,
        patience: int | None,
        batch_size: int,
        report: Callable[[int, float], None] | None = None,
        agreed: Callable[[float], float] = float,
        placed: Callable[[], AbstractContextManager[None]] = nullcontext,
        improved: Callable[[nn.Module, int], None] | None = None,
    ):
        self.samples = samples
        self.every = every
        self.patience = patience
        self.batch_size = batch_size
        self.report = report
        self.agreed = agreed
        self.placed = placed
        self.improved = improved
        self.losses: dict[int, float] = {}  # by the number of steps made
        self._best: dict[str, Tensor] = {}

    def measure(self, model: nn.Module, steps: int, device: torch.device, *, last: bool = False) -> bool:
        """Measures where it is time to; returns whether the training should end."""
        if len(self.samples) == 0 or steps in self.losses or (steps % self.every and not last):
            return False
        self.losses[steps] = loss = self._loss(model, steps, device)
        logger.info("after %d steps: loss of held-out samples %.4f", steps, loss)
        if self.report is not None:
            self.report(steps, loss)
        if self.patience is None:
            return False
        if loss <= min(self.losses.values()):
            self._best = {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}
        since = list(self.losses.values())[-self.patience - 1 :]
        return len(since) > self.patience and min(since) == since[0] and since[0] <= min(self.losses.values())

    @torch.no_grad()
    def restore_best(self, model: nn.Module) -> None:
        """Puts the best weights back, if any were kept."""
        for name, parameter in model.named_parameters():
            if name in self._best:
                parameter.copy_(self._best[name])

    def _loss(self, model: nn.Module, steps: int, device: torch.device) -> float:
        was_training = model.training
        model.eval()
        with self.placed():
            loss = self.agreed(mean_loss(model, self.samples, self.batch_size, device))
            if self.improved is not None and loss < min(self.losses.values(), default=math.inf):
                self.improved(model, steps)
        model.train(was_training)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """What was measured, and the best weights."""
        return {"losses": self.losses, "best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts it back."""
        self.losses, self._best = state["losses"], state["best"]


def split(samples: Samples, held_out: int, seed: int) -> tuple[Samples, Samples]:
    """Samples to train on, and so many others; all of them in their order where none is held out."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    return samples.select(order[held_out:].sort().values), samples.select(order[:held_out].sort().values)
