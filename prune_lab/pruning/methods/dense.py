"""No pruning at all: the baseline of every table, through the same pipeline."""

from dataclasses import dataclass
from typing import ClassVar

from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.method import Method, Reaches
from prune_lab.pruning.result import PruningResult


@dataclass
class Dense(Method):
    """Leaves the model as it is, whatever the target says."""

    for_encoders: ClassVar[bool] = True

    prunes_experts: ClassVar[bool] = True

    @property
    def reaches(self) -> Reaches:
        """Returns that the target's level means nothing to it."""
        return "nothing"

    def prune(self, context: PruningContext) -> PruningResult:
        """Prunes nothing."""
        return PruningResult()
