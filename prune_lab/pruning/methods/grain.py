"""GRAIN: gradients choose among neurons, values and keys of heads, whatever their kind, while the model is trained."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.errors import BadInput, BadSetting
from prune_lab.models.head_units import Keys, Values
from prune_lab.models.units import Units, block_of
from prune_lab.pruning.live_mask import LiveMasks, UnitMask, weight_before_mask
from prune_lab.pruning.masks import keep_all_but
from prune_lab.pruning.methods.trained import TrainedMethod
from prune_lab.pruning.unit_counts import counts_within, parameters_of
from prune_lab.training.settings import Training
from prune_lab.training.updates import Update
from prune_lab.utils.checks import check_number
from prune_lab.utils.processes import processes

_EPSILON = 1e-6


class ImportanceMask(UnitMask):
    """A mask that only ever closes. Its scores are the moving average of what units are worth."""

    @property
    def ranking(self) -> Tensor:
        """The scores by which units are chosen: those that are gone have the lowest, and stay so."""
        return super().ranking.masked_fill(~self.mask, -torch.inf)

    @torch.no_grad()
    def observe(self, momentum: float, structure: float, scale: float) -> None:
        """Moves the average on, by the gradients that the weights have.

        Args:
            momentum: what the past counts for.
            structure: see `Grain`.
            scale: that the gradients are multiplied by. A step whose gradients overflow is left out.
        """
        worth = first_order(self.units) / scale
        if bool(worth.isfinite().all()):
            self.scores.mul_(momentum).add_(worth * self._damping(structure), alpha=1 - momentum)

    def _damping(self, structure: float) -> Tensor:
        """What a new value counts for: less in heads with few values left."""
        units = self.units
        if not structure or not isinstance(units, Values):
            return torch.ones_like(self.scores)
        alive = units.per_head(self.mask) / units.per_head(torch.ones_like(self.mask)).clamp_min(1)
        return (alive / structure).tanh()[units.head.to(alive.device)]


def first_order(units: Units) -> Tensor:
    """What the loss changes by, to first order, without each unit.

    Args:
        units: under live masks, whose weights have gradients.

    Returns:
        ``|sum W G|`` over the columns that read a unit, or of queries and keys over its rows of the query projection
        with their biases: ``(count,)`` float32.
    """
    member = units.members[0] if isinstance(units, Keys) else units.reader
    stored = member.linear.module.get_parameter("parametrizations.weight.original")
    assert stored.grad is not None, "no backward pass was made"
    worth = member.sum((weight_before_mask(member.linear) * member.linear.seen(stored.grad)).float(), units.count)
    if member.bias is not None:
        bias = member.linear.module.get_parameter("parametrizations.bias.original")
        assert bias.grad is not None
        worth += member.gather((bias.detach() * bias.grad).float(), units.count)
    return worth.abs()


def keys_of_empty_heads(live: LiveMasks) -> dict[str, Tensor]:
    """Those of heads that have lost all their values, which compare for nothing: masks ``(count,)`` by their names."""
    values = {block_of(mask.units): mask for mask in live if isinstance(mask.units, Values)}
    found = {}
    for mask in live:
        keys, of_block = mask.units, values.get(block_of(mask.units))
        if isinstance(keys, Keys) and of_block is not None and isinstance(of_block.units, Values):
            empty = of_block.units.per_head(of_block.mask) == 0
            found[mask.key] = empty[keys.head.to(empty.device)]
    return found


@dataclass
class Grain(TrainedMethod):
    """Removes neurons, values and keys with the lowest moving average of ``|sum W G|``, over all layers and kinds.

    The sum is over the column of the down-projection that reads a neuron, or the columns of the attention's output that
    read a value (of all heads of queries that share it); of keys, with ``sparsity=neurons_values_keys``, over the row
    of the query projection with its bias, or the rows that positions rotate together. G is the gradient of what is
    predicted, on the batch of a step: the loss, with ``training.distill`` its divergence from the teacher, but not the
    distance of hidden states, which is added to the gradients once the scores have seen them. At every step the units
    with the highest scores stay as far as their parameters fit into what the schedule leaves; what has gone never comes
    back. Keys of heads without values are the next to go.

    Args:
        momentum: of the moving average, which begins at 0; what the past counts for.
        structure: alpha. A value's update is multiplied by ``tanh(D / alpha)``, D the share of its head's values that
            are left, so that heads empty which are nearly empty; 0: it is not.

    Source: Yang et al., 2023, arXiv:2212.07634. What differs from the authors' code: queries and keys stay unless the
    sparsity group says that they go, too; those of a head without values go within the level, not beyond it; the
    embedding is not factorised; a layer keeps ``min_units`` of each kind; the schedule reaches its end, where theirs
    stops a step before; a layer whose units have all gone, or a head, is left as zeros until the stage ``shrink`` takes
    it out.
    """

    patterns: ClassVar[frozenset[str]] = frozenset(
        {"neurons_values", "neurons_values_keys", "neurons", "values", "keys"}
    )
    separates: ClassVar[bool] = True
    for_encoders: ClassVar[bool] = True
    scopes: ClassVar[tuple[str, ...]] = ("global",)
    scope: str = "global"
    momentum: float = 0.998
    structure: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "momentum", least=0, below=1)
        check_number(self, "structure", least=0, hint="0: no head is preferred")

    @property
    def allocation_conflict(self) -> str | None:
        """Returns that the scores decide."""
        return "makes one cut for the whole model; use allocation=uniform"

    def settled(self, training: Training) -> Training:
        """Sets AdamW's epsilon to that of the authors' code where the settings have none."""
        return training if training.epsilon is not None else replace(training, epsilon=_EPSILON)

    def check_training(self, training: Training, update: Update | None) -> None:
        """Refuses two backward passes where gradients are averaged between processes in each."""
        super().check_training(training, update)
        if training.distill is not None and training.distill.hidden and processes().count > 1:
            raise BadSetting(
                training.distill,
                "hidden",
                "is not allowed with the method Grain in several processes: its gradients are to come after the "
                "scores, and those of one backward pass are averaged; use {at}.hidden=0, or one process",
            )

    def check_counts(self, units: Sequence[Units], sparsity: float) -> None:
        """Checks that so many parameters can go where every layer keeps ``min_units``.

        Raises:
            BadInput: they cannot.
        """
        kept = sum(min(each.count, max(each.least, self.min_units or 1)) * each.parameters_each for each in units)
        most = 1 - kept / parameters_of(units)
        if sparsity > most:
            raise BadInput(
                f"sparsity.level={sparsity:g} is more than can go: with {self.min_units or 1} units in each of "
                f"{len(units)} layers {most:.4f} of the parameters can; lower sparsity.level or {{at}}.min_units",
                self,
            )

    def masks_of(self, units: Units, generator: torch.Generator) -> Sequence[UnitMask]:
        """Returns one that only ever closes."""
        return [ImportanceMask(units, torch.zeros(units.shape), learned=False)]

    def between_losses(self, live: LiveMasks, scale: float) -> None:
        """Moves the scores on."""
        for mask in live:
            assert isinstance(mask, ImportanceMask)
            mask.observe(self.momentum, self.structure, scale)

    def update(self, live: LiveMasks, sparsity: float, final: float) -> None:
        """Masks the units with the lowest scores, as many as fit into the share of parameters that goes."""
        scores = {mask.key: mask.ranking for mask in live}
        for key, empty in keys_of_empty_heads(live).items():  # after those that are gone
            scores[key] = scores[key].masked_fill(empty & scores[key].isfinite(), torch.finfo(scores[key].dtype).min)
        counts = counts_within([mask.units for mask in live], scores, sparsity, self.min_units or 1)
        for mask in live:
            mask.set(mask.mask & keep_all_but(scores[mask.key], counts[mask.key]))
