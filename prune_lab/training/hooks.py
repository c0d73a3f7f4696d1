"""What is done beside a training: masks that move, zeros that stay."""

from typing import Any

from torch import Tensor

from prune_lab.data.samples import Batch


class Hooks:
    """What is done beside the training; here nothing."""

    @property
    def settings(self) -> str:
        """What a saved state depends on besides `Training`, in words."""
        return ""

    def before_step(self, step: int) -> None:
        """Before the first forward pass of a step."""

    def before_forward(self, batch: Batch) -> None:
        """Before the forward pass of every micro-batch."""

    def penalty(self) -> Tensor | None:
        """Added to the loss of every step."""
        return None

    def after_backward(self) -> None:
        """Once the gradients of a step are there."""

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict()`."""
