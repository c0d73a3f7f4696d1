"""Who writes calibration text: the model itself."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # importing model code takes seconds, which a mistake in the settings should not cost
    from prune_lab.models.model import PrunableModel


@dataclass(frozen=True)
class Author:
    """The model that writes calibration text, before anything is done to it.

    Attributes:
        model: on the host.
        device: where it writes.
        known_as: its fingerprint.
    """

    model: "PrunableModel"
    device: torch.device
    known_as: str
