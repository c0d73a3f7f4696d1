"""What a training did, step by step."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """What a training did."""

    losses: list[float] = field(default_factory=list)  # of every step, penalty included
    held_out: dict[int, float] = field(default_factory=dict)  # the loss of held-out samples, by steps made before
    seconds: float = 0.0
    resumed_at: int = 0
    trained_parameters: int = 0
    optimizer_bytes: int = 0

    def loss(self, steps: int = 10) -> float:
        """The mean of the last steps."""
        recent = self.losses[-steps:]
        return sum(recent) / len(recent)

    def state_dict(self) -> dict[str, Any]:
        """What a training that goes on has to know of the steps before."""
        return {"losses": self.losses, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict()`."""
        self.losses, self.seconds = list(state["losses"]), state["seconds"]
