"""TextPruner's importance of neurons and heads: by first-order scores, in several cuts."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.data.samples import Samples
from prune_lab.errors import BadSetting
from prune_lab.models.member import Member
from prune_lab.models.model import PrunableModel
from prune_lab.models.units import Units
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.masks import Masks
from prune_lab.pruning.methods.data_free import remove_units
from prune_lab.pruning.methods.method import Reaches
from prune_lab.pruning.methods.selection import drop_lowest
from prune_lab.pruning.methods.taylor_units import GradientUnits
from prune_lab.pruning.methods.unitwise import SCOPES
from prune_lab.pruning.result import PruningResult
from prune_lab.pruning.target import Target
from prune_lab.pruning.unit_counts import counts_by_score, uniform_counts
from prune_lab.training.gradients import gradient_of, sample_gradients
from prune_lab.utils.checks import check_choice, check_whole


@dataclass
class TextPruner(GradientUnits):
    """Removes units with the lowest first-order scores in several cuts, with scores that are computed anew for each.

    Of a sample, ``|sum W G|`` over the columns of the attention's output that read a head, or over the column of the
    down-projection that reads a neuron; with ``scope=layer`` a neuron also counts ``|sum W G + b G_b|`` over its rows
    of the up-projection and of the gate. The score is the sum over samples. After each cut but the last, what has gone
    is zero while the next scores are computed; cut k of n takes k/n of what goes in the end.

    The whole model is on the device with a gradient for each of its weights that is looked at.

    Args:
        rounds: cuts.
        samples: how many calibration samples, the first ones.
        seqlen: tokens of each, the first ones; ``None``: all, as of an encoder's texts in any case.
        scope: ``layer``: every block loses the same share; ``model``: units of all blocks compete, by their score for
            each of their parameters.
        multiple_of: the neurons that a block keeps are a multiple of this; fewer go then than the level asks for.

    Source: TextPruner (Yang, Cui and Chen, 2022, arXiv:2203.15996). Differences from its code: the loss is taken one
    sample at a time; of causal language models it is that of the next token of a text, of encoders that of labels (its
    ``use_logits`` takes the model's own outputs as targets, whose gradient is rounding noise at the first cut); heads
    that share keys and values go together.
    """

    for_encoders: ClassVar[bool] = True
    rounds: int = 8
    samples: int = 16
    seqlen: int | None = 128
    scope: str = "layer"
    multiple_of: int = 1

    def __post_init__(self) -> None:
        check_whole(self, "rounds", "samples", "multiple_of")
        check_whole(self, "seqlen", least=2, optional=True)
        check_choice(self, "scope", SCOPES)

    @property
    def reaches(self) -> Reaches:
        """Returns that less goes where the neurons that stay are a multiple."""
        return "level" if self.multiple_of == 1 else "at most"

    def check(self, target: Target) -> None:
        """Refuses cuts on the way to a time, which has no parts where units of all layers compete."""
        if target.speedup is not None and self.scope == "model" and self.rounds > 1:
            raise BadSetting(
                self, "rounds", "has no cuts on the way to sparsity.speedup with {at}.scope=model; use {at}.rounds=1"
            )

    def check_model(self, model: PrunableModel, target: Target) -> None:
        """Refuses to change weights for a while that are not held in memory, too."""
        super().check_model(model, target)
        if model.mapped is not None and self.rounds > 1:
            raise BadSetting(
                self, "rounds", "sets weights to zero between cuts, which model.stream=true leaves in their files; use "
                "{at}.rounds=1, or model.stream=false",
            )  # fmt: skip
        most = max((each.count for each in target.units(model) if each.kind == "neurons"), default=None)
        if most is not None and self.multiple_of >= most:
            raise BadSetting(
                self, "multiple_of", f"leaves no neurons to remove of the {most} that a block has at most; use a "
                "smaller {at}.multiple_of, such as 1",
            )  # fmt: skip

    def prune(self, context: PruningContext) -> PruningResult:
        """Scores and cuts in turns, then removes what has gone in the end."""
        start, target = time.perf_counter(), context.target
        units = target.units(context.model)
        samples, masks = context.calibration.first(self.samples, self.seqlen), Masks()
        scores: dict[str, Tensor] = {}
        with _unchanged(units):
            for number in range(1, self.rounds + 1):
                scores = scores or self._scores(context.model, units, samples, context.calibration.device)
                before, masks = masks, self._cut(units, scores, target, number / self.rounds)
                if not all(each.name in before and torch.equal(masks[each.name], before[each.name]) for each in units):
                    scores = {}  # of a model that is about to change; with more rounds than units it often is not
                    for each in units:
                        each.apply(masks[each.name])
        return remove_units(context, units, masks, time.perf_counter() - start)

    def _scores(
        self, model: PrunableModel, units: Sequence[Units], samples: Samples, device: torch.device
    ) -> dict[str, Tensor]:
        """By the names of units, ``(count,)`` float32 on the host; those that are zero have the lowest."""
        members = {each.name: [m for m in each.members if m.dim == 1 or self._counts_rows(each)] for each in units}
        parameters = [member.linear.module.weight for some in members.values() for member in some]
        parameters += [m.linear.module.bias for some in members.values() for m in some if m.bias is not None]
        scores = {each.name: torch.zeros(each.count) for each in units}
        for _ in sample_gradients(model, parameters, samples, device):
            with torch.no_grad():
                for each in units:
                    for dim in (0, 1):
                        terms = [_change(member, each.count) for member in members[each.name] if member.dim == dim]
                        if terms:
                            scores[each.name] += torch.stack(terms).sum(0).abs().cpu()
        for each in units:
            scores[each.name].masked_fill_(each.zero, -torch.inf)
            if self.scope == "model":
                scores[each.name] /= each.parameters_each
        return scores

    def _counts_rows(self, units: Units) -> bool:
        return self.scope == "layer" and units.kind == "neurons"

    def _cut(self, units: Sequence[Units], scores: Mapping[str, Tensor], target: Target, share: float) -> Masks:
        """Drops a share of what goes in the end."""
        if self.scope == "layer":
            asked = uniform_counts(units, target)
            counts = {each.name: int(asked[each.name] * share) // each.at_once * each.at_once for each in units}
        else:
            part = target if share == 1 else replace(target, level=target.sparsity * share)
            counts = counts_by_score(units, scores, part, self)
        for each in units:
            if each.kind == "neurons":
                kept = -(-(each.count - counts[each.name]) // self.multiple_of) * self.multiple_of
                counts[each.name] = max(0, each.count - kept)
        return Masks({each.name: drop_lowest(each, scores[each.name], counts[each.name]) for each in units})


def _change(member: Member, count: int) -> Tensor:
    """What the loss changes by, to first order, if each unit's part of a matrix were zero: ``(count,)`` float32."""
    weight = member.linear.module.weight
    change = member.sum(member.linear.seen((weight * gradient_of(weight)).float()), count)
    if member.bias is None:
        return change
    bias = member.linear.module.bias
    return change + member.gather((bias * gradient_of(bias)).float(), count)


@contextmanager
def _unchanged(units: Sequence[Units]) -> Iterator[None]:
    """Gives the weights and biases of units the values back that they have now."""
    linears = {member.linear.name: member.linear for each in units for member in each.members}
    before = {
        name: (linear.weight.clone(), None if linear.bias is None else linear.bias.clone())
        for name, linear in linears.items()
    }
    try:
        yield
    finally:
        for name, (weight, bias) in before.items():
            linears[name].write(weight)
            if bias is not None:
                linears[name].write_bias(bias)
