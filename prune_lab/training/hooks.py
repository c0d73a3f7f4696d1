"""What is done beside a training: masks that move, zeros that stay."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from prune_lab.data.samples import Batch

if TYPE_CHECKING:  # PyTorch's FSDP takes a second to import
    from prune_lab.training.sharded import Shards


class Hooks:
    """What is done beside the training; here nothing."""

    @property
    def settings(self) -> str:
        """What a saved state depends on besides `Training`, in words."""
        return ""

    def follow(self, shards: "Shards") -> None:
        """Before the training, where weights are divided: other parameters are trained in the place of the model's."""

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
