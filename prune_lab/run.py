"""What flows from stage to stage of a run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from prune_lab.data.tokens import Data
from prune_lab.evaluation.base import Subject
from prune_lab.masks import Masks
from prune_lab.models.view import PrunableModel


@dataclass
class Table:
    """A table for the tracker and the run folder."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass
class Run:
    """The state of a run.

    ``metrics`` holds what stages measured, as ``stage/metric``; ``protocol`` how those numbers came about; ``tables``
    what a stage wants shown as a table, by name.
    """

    model: PrunableModel
    data: Data
    device: torch.device
    folder: Path
    seed: int
    masks: Masks = field(default_factory=Masks)
    metrics: dict[str, float] = field(default_factory=dict)
    protocol: dict[str, object] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)

    @property
    def subject(self) -> Subject:
        """What an evaluation may look at."""
        return Subject(self.model, self.data, self.device, self.folder)


def training_windows(run: Run) -> Tensor:
    """What a stage trains on, ``(windows, seqlen)`` int64; how it came about goes into the protocol."""
    if run.data.training is None:
        run.protocol["training"] = {"source": "calibration samples", "windows": len(run.data.calibration)}
        return run.data.calibration
    windows, run.protocol["training"] = run.data.training()
    return windows


class Stage(Protocol):
    """One step of a run."""

    def prepare(self) -> None:
        """Checks what can be checked before a model is loaded; raises `BadInput`."""

    def check(self, run: Run) -> None:
        """Checks what only the loaded model can tell, before the first stage runs; raises `BadInput`."""

    def __call__(self, run: Run) -> dict[str, float]:
        """Does the step and returns its metrics, without the stage's name."""
        ...
