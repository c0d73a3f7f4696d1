"""Magnitude pruning: drops the weights of least absolute value, or the neurons, heads or blocks of least norm."""

from dataclasses import dataclass
from typing import ClassVar

from prune_lab.errors import BadSetting
from prune_lab.models.model import PrunableModel
from prune_lab.models.units import Units
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.masks import Masks, keep_global, zeros_in
from prune_lab.pruning.methods.data_free import DataFreeMethod
from prune_lab.pruning.methods.selection import keep_in_layer, keep_in_rows, keep_units
from prune_lab.pruning.target import Target
from prune_lab.utils.checks import check_choice

SCOPES = ("layer", "row", "model")


@dataclass
class Magnitude(DataFreeMethod):
    """Scores each weight ``|W_ij|``; the kept weights do not change.

    Neurons, heads and values are scored by the L2 norm of all their weights, in the layers they are read from and in
    the one they are read by; where two kinds compete, by the root of the mean square instead. Blocks are scored by the
    norm of all their linear layers.

    Args:
        scope: where weights compete. ``layer``: ``floor(s * out * in)`` of each layer go, the baseline of the pruning
            papers; ``row``: ``floor(s * in)`` of each row; ``model``: ``floor(s * n)`` of all ``n`` prunable weights.
            Neurons and heads compete within their block (``layer``) or with those of all blocks (``model``), of which
            each keeps one.

    Source: the baseline in SparseGPT (arXiv:2301.00774) and Wanda (arXiv:2306.11695). Their code drops every weight up
    to and including the cut, so one more per layer; here the count is exact.
    """

    for_encoders: ClassVar[bool] = True

    scope: str = "layer"

    def __post_init__(self) -> None:
        check_choice(self, "scope", SCOPES)

    @property
    def allocation_conflict(self) -> str | None:
        """Returns why one cut for the whole model cannot follow one."""
        if self.scope != "model":
            return None
        return (
            "makes one cut for the whole model and so sets each layer's sparsity itself; use allocation=uniform, or "
            "compare within layers ({at}.scope=layer)"
        )

    def check(self, target: Target) -> None:
        """Refuses a pattern or a budget with one cut for the model, and rows for neurons, which have none."""
        if self.scope == "row" and target.removes_units:
            raise BadSetting(self, "scope", f"has no meaning for {target.kind}; use {{at}}.scope=layer or model")
        if self.scope == "model" and (target.n_of_m or target.budget):
            raise BadSetting(
                self,
                "scope",
                "sets the sparsity of each layer itself; use {at}.scope=layer with N:M or an allocation",
            )

    def check_model(self, model: PrunableModel, target: Target) -> None:
        """Refuses one cut for single weights of a model that stays in its files: all scores would be in memory."""
        super().check_model(model, target)
        if self.scope == "model" and model.mapped is not None and not target.removes_units:
            raise BadSetting(
                self,
                "scope",
                "compares all weights of the model at once, and those of this one stay in their files "
                "(model.stream=true); use {at}.scope=layer",
            )

    def select_mask(self, linears: list[PrunableLinear], target: Target, seed: int) -> Masks:
        """Cuts the absolute values."""
        if self.scope == "model":
            return keep_global({linear.name: linear.weight.abs() for linear in linears}, target.sparsity)
        keep = keep_in_layer if self.scope == "layer" else keep_in_rows
        masks = Masks()
        for linear in linears:
            masks[linear.name] = keep(linear.weight.abs(), target, linear.name, zeros_in(linear.weight))
        return masks

    def select_units(self, units: list[Units], target: Target, seed: int) -> Masks:
        """Cuts the norms; of neurons and heads together, those of a mean weight, or heads would be the last to go."""
        size = {each.name: each.parameters_each**0.5 if target.counts_parameters else 1.0 for each in units}
        return keep_units(
            units, {each.name: each.norm(2) / size[each.name] for each in units}, target, self.scope, self
        )
