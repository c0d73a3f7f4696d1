"""The one interface of an allocation, and the loop that most allocations share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import ClassVar

from prune_lab.cache.store import Store
from prune_lab.errors import BadInput
from prune_lab.models.model import PrunableModel
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.allocation.budget import exact_counts, levels_of
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.masks import count_dropped
from prune_lab.pruning.target import Target
from prune_lab.utils.checks import check_number


@dataclass(frozen=True)
class Workplace:
    """Where an allocation that works for long keeps what it has; by default nowhere.

    Args:
        progress: a folder for that from which it goes on after an interruption; the caller removes it in the end.
        course: a CSV file that tells how it went, row by row.
        plot: an SVG file of that course.
        store: for results that other runs can take.
    """

    progress: Path | None = None
    course: Path | None = None
    plot: Path | None = None
    store: Store | None = None


class Allocation(ABC):
    """A way to share out the sparsity of a target over the layers of a model."""

    for_encoders: ClassVar[bool] = False
    """Whether it does so in encoders, too, whose texts are padded and have labels; each class says so for itself."""
    divides_time: ClassVar[bool] = False
    """Whether it can also share out the seconds of a target that asks for a speed (``Target.time``)."""

    @abstractmethod
    def budget(
        self, model: PrunableModel, calibration: Calibration, target: Target, place: Workplace | None = None
    ) -> dict[str, float]:
        """The fraction removed of each linear layer, by name; the model is left as it is.

        In total exactly as many weights go as with one level for all linear layers. Empty: one level for all linear
        layers.
        """

    def check(self, target: Target) -> None:  # noqa: B027 - uniform can do every target
        """Raises `BadInput` when the target cannot be shared out so; called before a model is loaded."""

    def least_kept(self, target: Target) -> int | None:
        """The units that every layer keeps at least, where units are shared out; ``None`` elsewhere."""
        return None

    def check_model(self, model: PrunableModel, target: Target) -> None:  # noqa: B027
        """Raises `BadInput` for what only the model can tell; called before the first stage."""

    def check_calibration(self, calibration: Calibration) -> None:  # noqa: B027
        """Raises `BadInput` for what only the calibration set can tell; called before the first stage."""

    def describe(self) -> dict[str, object]:
        """Name and settings, as plain JSON for the protocol."""
        return describe(self)


@dataclass
class LayerAllocation(Allocation):
    """An allocation that names a target level for each layer; a shift of all of them makes the total right.

    Args:
        max_level: no linear layer loses a larger fraction. With or without it, as many weights stay of a linear layer
            as it has rows.

    Raises:
        BadInput: a setting is out of its range.
    """

    max_level: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_number(self, "max_level", least=0, below=1, optional=True)

    def check(self, target: Target) -> None:
        """A pattern leaves nothing to share out, and levels are those of weights."""
        if target.removes_units:
            raise BadInput(
                f"allocations share out single weights, and sparsity.pattern={target.pattern} removes {target.kind} "
                "whole; use allocation=uniform, with method.scope=model for another share in every block"
            )
        if target.n_of_m:
            raise BadInput(
                f"sparsity.pattern={target.pattern!r} fixes every layer's sparsity, so there is nothing to allocate; "
                "use allocation=uniform, or sparsity=unstructured"
            )
        self.check_level(target)

    def check_level(self, target: Target) -> None:
        """Whether every layer may lose as much as the target asks of all."""
        if self.max_level is not None and target.sparsity > self.max_level:
            raise BadInput(
                f"sparsity.level={target.sparsity:g} is more than {{at}}.max_level={self.max_level:g}, which no "
                "layer may exceed; raise {at}.max_level, or lower sparsity.level",
                self,
            )

    def check_model(self, model: PrunableModel, target: Target) -> None:
        """Whether so many weights may go at all."""
        linears = target.linears(model)
        most, total = sum(self.caps(model, target).values()), total_dropped(linears, target)
        if total > most:
            entries = sum(entries_of(linears).values())
            raise BadInput(
                f"sparsity.level={target.sparsity:g} removes more than this allocation may from {model.name}, "
                f"{most / entries:.6g}; lower sparsity.level, or use allocation=uniform"
            )

    def budget(
        self, model: PrunableModel, calibration: Calibration, target: Target, place: Workplace | None = None
    ) -> dict[str, float]:
        """Shifts the desired levels until the total is right."""
        linears = target.linears(model)
        entries = entries_of(linears)
        target_levels = self.target_levels(model, calibration, target)
        counts = exact_counts(
            {linear.name: target_levels[linear.name] for linear in linears},
            entries,
            self.caps(model, target),
            total_dropped(linears, target),
            zeros_of(linears, target),
        )
        return levels_of(counts, entries)

    @abstractmethod
    def target_levels(self, model: PrunableModel, calibration: Calibration, target: Target) -> Mapping[str, float]:
        """The fraction that is to be removed of each linear layer of the target, before the shift."""

    def caps(self, model: PrunableModel, target: Target) -> dict[str, int]:
        """How many weights of each linear layer of the target may go at most: all but one a row, or ``max_level``."""
        linears = target.linears(model)
        entries = entries_of(linears)
        caps = {linear.name: entries[linear.name] - linear.shape[0] for linear in linears}
        if self.max_level is None:
            return caps
        return {name: min(cap, count_dropped(self.max_level, entries[name])) for name, cap in caps.items()}


def entries_of(linears: Sequence[PrunableLinear]) -> dict[str, int]:
    """The number of weights of each linear layer."""
    return {linear.name: linear.shape[0] * linear.shape[1] for linear in linears}


def zeros_of(linears: Sequence[PrunableLinear], target: Target) -> dict[str, int]:
    """How many weights of each linear layer are zero already and stay so."""
    zeros = {linear.name: target.zeros_to_keep(linear.weight) for linear in linears}
    return {name: 0 if zero is None else int(zero.count_nonzero()) for name, zero in zeros.items()}


def total_dropped(linears: Sequence[PrunableLinear], target: Target) -> int:
    """How many weights of all linear layers go with one level for all."""
    return sum(count_dropped(target.sparsity, entries) for entries in entries_of(linears).values())


def describe(part: object) -> dict[str, object]:
    """The name of a part and its settings, as plain JSON; parts of it likewise."""
    values = {entry.name: getattr(part, entry.name) for entry in fields(part)} if is_dataclass(part) else {}
    return {"name": type(part).__name__} | {
        key: describe(value) if is_dataclass(value) else value for key, value in values.items()
    }
