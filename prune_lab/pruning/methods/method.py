"""The one interface of a pruning method."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from prune_lab.models.model import PrunableModel
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.result import PruningResult
from prune_lab.pruning.schedule import Schedule
from prune_lab.pruning.target import Target
from prune_lab.training.settings import Training
from prune_lab.training.updates import Update

FITTING = "method=sparsegpt, alps, admm, ziplm or least_squares"
"""Those that can fit layers to the dense model's outputs."""

Reaches = Literal["level", "at most", "at least", "nothing"]


class Method(ABC):
    """A way to prune a model.

    A method holds its settings and nothing else: what belongs to one pruning lives in the context, in the result, or in
    objects that `prune` makes. So one method can prune several models, also at once.
    """

    patterns: ClassVar[frozenset[str]] = frozenset({"unstructured", "N:M"})
    """The kinds of pattern that it can make, see `Target.kind`."""

    prunes_experts: ClassVar[bool] = False
    """Whether it prunes models that have experts in the place of feed-forward networks."""

    for_encoders: ClassVar[bool] = False
    """Whether it prunes encoders, too, whose texts are padded and have labels; each class says so for itself."""

    trains: ClassVar[bool] = False
    """Whether it trains the model while it prunes, and so uses the training and the samples."""

    scheduled: ClassVar[bool] = True
    """Of a method that trains: whether its sparsity grows as the schedule says."""

    rewrites: ClassVar[bool] = False
    """Of a method that does not train: whether it changes weights besides those that the target is about."""

    outermost: ClassVar[bool] = False
    """Whether what it leaves is more than pruned weights, so that no other method can start from it."""

    @property
    def reaches(self) -> Reaches:
        """How the sparsity that it reaches relates to the target's level."""
        return "level"

    @property
    def least_kept(self) -> int:
        """How many units or weights of every layer stay, whatever the target says."""
        return 1

    @abstractmethod
    def prune(self, context: PruningContext) -> PruningResult:
        """Prunes the context's model in place, and returns what was kept and what was done to each layer."""

    @property
    def keeps_order(self) -> bool:
        """Whether an N:M pattern always holds for the input channels as they are."""
        return True

    @property
    def leaves_adapter(self) -> bool:
        """Whether low-rank parts stand beside the model's weights afterwards (`PrunableModel.adapter`)."""
        return False

    @property
    def divides_samples(self) -> bool:
        """Whether each of several processes may walk a share of the calibration samples alone.

        So it is where all that the method takes from them are sums (`Statistic`). Otherwise each process walks all.
        """
        return False

    @property
    def allocation_conflict(self) -> str | None:
        """Why the method cannot follow an allocation, as a predicate with a remedy; ``None`` if it can.

        Such a method makes one cut for the whole model, and so cannot prune single blocks either.
        """
        return None

    @property
    def dense_targets_conflict(self) -> str | None:
        """Why layers cannot be fitted to the dense model's outputs, as a predicate with a remedy; ``None`` if they can.

        Methods can that find weights by least squares, see `prune_lab.pruning.dense_targets`.
        """
        return f"fits no weights by least squares; use {FITTING} with dense_targets, or dense_targets=0"

    def check(self, target: Target) -> None:  # noqa: B027 - most methods can do every target
        """Raises `BadInput` when the method cannot do what the target asks; called before a model is loaded."""

    def check_training(self, training: Training, update: Update | None) -> None:  # noqa: B027 - most do not train
        """Raises `BadInput` when the method cannot train as asked; called before a model is loaded."""

    def check_schedule(self, schedule: Schedule, training: Training) -> None:  # noqa: B027 - most do not train
        """Raises `BadInput` when the method cannot prune as the schedule says; called before a model is loaded."""

    def check_model(self, model: PrunableModel, target: Target) -> None:  # noqa: B027 - most can do every model
        """Raises `BadInput` when the method cannot do to this model what the target asks."""
