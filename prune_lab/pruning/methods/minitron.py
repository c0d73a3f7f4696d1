"""Minitron's importance of neurons and heads: how large their activations are."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from prune_lab.models.units import Units
from prune_lab.pruning.calibration.statistics import SequenceMeans
from prune_lab.pruning.methods.unitwise import ScoredUnits


@dataclass
class Minitron(ScoredUnits):
    """Scores a unit by its activations: absolute values, averaged over a sequence, L2 norm over sequences.

    Of a head it is the L2 norm over its dimensions. Weights do not enter, and nothing else changes.

    Source: Muralidharan et al., 2024, arXiv:2407.14679, where (mean over the sequence, L2 over the batch) was among the
    best of nine ways to aggregate. They remove as many units of every block; one cut for the model
    (``scope=model``, scores standardised in each layer) is ours.
    """

    statistic: ClassVar = SequenceMeans

    def empty_statistic(self, seqlen: int) -> Callable[[], SequenceMeans]:
        """Returns what makes a statistic of sequences of that length."""
        return partial(SequenceMeans, seqlen)

    def columns(self, units: Units, statistic: SequenceMeans) -> Tensor:
        """Returns the norms, ``(in,)`` float32."""
        return statistic.value

    def score(self, units: Units, statistic: SequenceMeans) -> Tensor:
        """Returns the norm of each unit's, ``(count,)`` float32."""
        return units.reader.gather(statistic.value.square(), units.count).sqrt()
