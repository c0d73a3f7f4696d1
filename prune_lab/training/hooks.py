"""What is done beside a training: masks that move, zeros that stay."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prune_lab.data.samples import Batch

if TYPE_CHECKING:  # PyTorch's FSDP takes a second to import
    from prune_lab.training.sharded import Shards


class Hooks:
    """What is done beside the training; here nothing."""

    @property
    def separates(self) -> bool:
        """Whether `between_losses` is called, so that the distance of hidden states has a backward pass of its own."""
        return False

    @property
    def settings(self) -> str:
        """What a saved state depends on besides `Training`, in words."""
        return ""

    def follow(self, shards: "Shards") -> None:
        """Before the training, where weights are divided: other parameters are trained in the place of the model's."""

    def before_training(self, optimizer: torch.optim.Optimizer) -> None:
        """Once before the first step, with the weights on their device and a saved state restored."""

    def before_step(self, step: int) -> None:
        """Before the first forward pass of a step."""

    def before_forward(self, batch: Batch) -> None:
        """Before the forward pass of every micro-batch."""

    def penalty(self) -> Tensor | None:
        """Added to the loss of every step."""
        return None

    def between_losses(self, scale: float) -> None:
        """Once the gradients of what a step predicts are there, and no others: if the hooks ask for it (`separates`).

        Those of the distance of hidden states are added afterwards.

        Args:
            scale: that the gradients are multiplied by, with ``precision=fp16``; else 1.
        """

    def after_backward(self) -> None:
        """Once the gradients of a step are there."""

    def after_clip(self) -> None:
        """Once the gradients are clipped; what is added to them here moves the weights as it is.

        With ``precision=fp16`` the scale of the loss is taken out of them.
        """

    def after_step(self, step: int) -> None:
        """Once the optimizer has moved the weights of a step, counted from 0."""

    def course(self) -> Mapping[str, float]:
        """Numbers for the series of the training, by name, as they are after a step; nothing by default."""
        return {}

    def measured(self) -> AbstractContextManager[None]:
        """Inside, the model is as held-out samples are measured: pruned as far as it is, and without what is drawn."""
        return nullcontext()

    def improved(self, model: nn.Module, steps: int) -> None:
        """Once held-out samples have a lower loss than ever before, after so many steps; inside `measured()`."""

    def after_training(self) -> None:
        """Once after the last step, with the weights on their device still."""

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict()`."""
