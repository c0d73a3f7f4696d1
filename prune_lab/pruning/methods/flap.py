"""FLAP: removes the units that fluctuate least, and puts their mean into a bias."""

import logging
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.models.biases import add_biases, without_bias
from prune_lab.models.model import PrunableModel
from prune_lab.models.units import Units
from prune_lab.pruning.calibration.statistics import Moments
from prune_lab.pruning.methods.unitwise import ScoredUnits, Solution
from prune_lab.utils.checks import check_choice, check_flag

logger = logging.getLogger(__name__)

METRICS = ("wifv", "ifv", "wifn")


@dataclass
class Flap(ScoredUnits):
    """Scores an input j of the layer that reads units by ``var_j ||W_:j||^2``, and removes the lowest.

    The score is the output error that is left when the mean ``mu`` of what goes is put into the bias,
    ``b + W (mu * gone)``, and inputs do not depend on each other. Of a head it is the mean over its dimensions. By
    default units of all layers compete, with the scores of inputs standardised in each layer.

    Args:
        metric: ``wifv`` as above; ``ifv``: the variance alone; ``wifn``: ``mean_i |W_ij| ||x_j||``.
        bias: whether the mean is put into a bias. Where the layer has none, the model gets one if the configuration of
            its family can say so; where it cannot, this is left out, and the log says so.

    Source: FLAP (An et al., 2024, arXiv:2312.11983), WIFV with the adaptive search AL-AM. Differences from the authors'
    code: the metric of attention is not squared before it is standardised (the paper does not, either); a bias that is
    there is added to, not replaced; the variance is that of all tokens (theirs counts the new mean twice); a layer
    keeps ``min_units``; heads that share keys and values go together. Theirs calibrates every block on the dense model:
    ``propagate=dense``.
    """

    scope: str = "model"
    metric: str = "wifv"
    bias: bool = True
    statistic: ClassVar = Moments

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "metric", METRICS)
        check_flag(self, "bias")

    def prepare_model(self, model: PrunableModel, units: list[Units]) -> None:
        """Gives the layers that read units a bias of zero, where they have none and can have one."""
        if self.bias:
            give_biases(model, units)

    def columns(self, units: Units, statistic: Moments) -> Tensor:
        """Returns the fluctuation of each input, ``(in,)`` float64."""
        weight = units.reader.linear.weight.double()
        if self.metric == "wifn":
            norm = (statistic.variance * (statistic.tokens - 1) + statistic.tokens * statistic.mean.square()).sqrt()
            return weight.abs().mean(0) * norm
        return statistic.variance * (1.0 if self.metric == "ifv" else weight.square().sum(0))

    def solve(self, units: Units, statistic: Moments, dropped: int, zero: Tensor | None) -> Solution:
        """Removes the lowest, and puts what they add on average into the bias."""
        keep, linear = self.choose(units, statistic, dropped), units.reader.linear
        if not self.bias or linear.bias is None:
            return Solution(keep)
        gone = units.reader.spread(~keep)
        added = linear.weight.double() @ (statistic.mean * gone)
        return Solution(keep, bias=linear.bias.double() + added)


def give_biases(model: PrunableModel, units: list[Units]) -> None:
    """Gives the layers that read units a bias, and says which cannot have one."""
    readers = [each.reader.linear for each in units]
    lacking = without_bias(model, readers)
    if lacking:
        logger.warning(
            "%d layers have no bias, and the configuration of %s cannot give them one (%s, ...): what is removed there "
            "is not made up for by its mean",
            len(lacking), model.hf.config.model_type, lacking[0].name,
        )  # fmt: skip
    with torch.no_grad():
        add_biases(model, readers)
