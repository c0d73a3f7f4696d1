"""Methods that prune while the model is trained."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.errors import BadInput, BadSetting, RunFailed
from prune_lab.models.model import PrunableModel
from prune_lab.models.units import Units
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.live_mask import LiveMasks, UnitMask
from prune_lab.pruning.masks import Masks, count_dropped, keep_all_but, sparsity_of
from prune_lab.pruning.methods.masked_training import MaskPolicy, train_with_masks
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.methods.selection import keep_over_all
from prune_lab.pruning.result import LayerRow, PruningResult
from prune_lab.pruning.target import Target
from prune_lab.pruning.unit_counts import removed_share
from prune_lab.training.lora import Lora
from prune_lab.training.settings import Training
from prune_lab.training.updates import Update
from prune_lab.utils.checks import check_choice, check_whole

logger = logging.getLogger(__name__)
SCOPES = ("layer", "global")
EPSILON = 1e-4
"""AdamW's, of weights and scores, in the code of Santacroce et al., 2023, arXiv:2302.03773, for all of its methods."""
_NEARLY = 0.02  # floors cost a fraction of that


@dataclass
class TrainedMethod(MaskPolicy, Method):
    """Scores the units of every layer, and masks those with the lowest scores more and more while training goes on.

    Units are neurons, attention heads, values or single weights, as the target's pattern says. With an N:M pattern the
    N highest scores of every M are safe, the lowest of all others go first, and all of these are gone in the end.

    Args:
        scope: ``layer`` removes the same share of every layer, ``global`` the lowest scores of all layers together.
        min_units: a layer keeps at least so many units; a cut that would leave fewer takes them from other layers
            instead. null: such a cut ends the run.
    """

    scope: str = "layer"
    min_units: int | None = 1

    patterns: ClassVar[frozenset[str]] = frozenset({"neurons", "heads", "values", "unstructured", "N:M"})
    trains: ClassVar[bool] = True
    learned: ClassVar[bool] = False
    """Whether the scores are trained with the weights."""
    scopes: ClassVar[tuple[str, ...]] = SCOPES

    def __post_init__(self) -> None:
        check_choice(self, "scope", self.scopes)
        check_whole(self, "min_units", optional=True, hint="null: a layer may lose all of them, which ends the run")

    def prune(self, context: PruningContext) -> PruningResult:
        """Trains the model with masks on its units that close as the schedule says.

        Raises:
            BadInput: the target leaves fewer units than the method must keep.
            RunFailed: the loss is not finite, or a layer would lose all its units.
        """
        units, sparsity = context.target.units(context.model), context.target.sparsity
        self.check_counts(units, sparsity)
        masks, progress = train_with_masks(self, units, context)
        if context.target.counts_parameters:
            self._warn_of_shortfall(masks, "units", sparsity, removed_share(units, masks))
        else:
            self._warn_of_shortfall(masks, units[0].kind, sparsity)
        rows = {name: LayerRow.of_mask(name, keep) for name, keep in masks.items()}
        return PruningResult(masks, rows, progress=progress, notes={"weights": "frozen"} if self.freezes else {})

    @property
    def least_kept(self) -> int:
        """Returns ``min_units``."""
        return self.min_units or 1

    @property
    def allocation_conflict(self) -> str | None:
        """Returns that the scores decide."""
        scopes = " or ".join(self.scopes)
        return f"shares out what goes by its own scores; use allocation=uniform, and {{at}}.scope={scopes}"

    def check_training(self, training: Training, update: Update | None) -> None:
        """Checks that all that is trained is trained to the end, and in one piece."""
        if training.fsdp:
            raise BadSetting(
                training,
                "fsdp",
                f"is not allowed with the method {type(self).__name__}, which needs whole weights for its scores; use "
                "{at}.fsdp=false, or prune by a method such as wanda and train afterwards, with finetune=full",
            )
        trained = "its scores alone," if self.freezes else "all weights"
        if isinstance(update, Lora) or training.patience:
            raise BadInput(
                f"method {type(self).__name__} trains {trained} for all of its steps; finetune=lora and "
                "{at}.patience are for training after pruning: use finetune=none, full or distill, and "
                "{at}.patience=null",
                training,
            )

    def check_model(self, model: PrunableModel, target: Target) -> None:
        """Checks that every layer can keep its units."""
        self.check_counts(target.units(model), target.sparsity)

    def settled(self, training: Training) -> Training:
        """Sets AdamW's epsilon to that of the authors' code where the settings have none."""
        return training if training.epsilon is not None else replace(training, epsilon=EPSILON)

    def make_masks(self, units: Sequence[Units], seed: int) -> LiveMasks:
        """Puts masks on the model that keep everything yet, with the first scores."""
        generator = torch.Generator().manual_seed(seed)
        return LiveMasks([mask for each in units for mask in self.masks_of(each, generator)])

    def masks_of(self, units: Units, generator: torch.Generator) -> Sequence[UnitMask]:
        """Returns the masks of one layer: one by default."""
        return [UnitMask(units, self.first_scores(units, generator), learned=self.learned)]

    def first_scores(self, units: Units, generator: torch.Generator) -> Tensor:
        """Returns the first scores, of the shape of the units, float32, on the host; zeros by default."""
        return torch.zeros(units.shape)

    def update(self, live: LiveMasks, sparsity: float, final: float) -> None:
        """Masks the units with the lowest scores."""
        self.refresh(live)
        scores = {mask.key: mask.ranking for mask in live}
        if sparsity == final and all(mask.n_of_m for mask in live):  # exactly the pattern, however 1 - N/M is rounded
            keep: Mapping[str, Tensor] = {name: score.isposinf() for name, score in scores.items()}
        else:
            keep = self.select_mask(scores, sparsity)
        for mask in live:
            mask.set(keep[mask.key])

    def refresh(self, live: LiveMasks) -> None:
        """Computes the scores anew from the weights, before masks are chosen."""

    def select_mask(self, scores: Mapping[str, Tensor], sparsity: float) -> Mapping[str, Tensor]:
        """Returns the keep-masks of scores, of their shapes: exactly ``min_units(sparsity * n)`` go."""
        if self.scope == "layer":
            return {
                name: keep_all_but(score.flatten(), self._dropped(name, score, sparsity)).view_as(score)
                for name, score in scores.items()
            }
        return keep_over_all(scores, sparsity, self.min_units, self)

    def check_counts(self, units: Sequence[Units], sparsity: float) -> None:
        """Checks that every layer can keep as many units as it must.

        Raises:
            BadInput: one cannot.
        """
        total, min_units, kind = sum(each.count for each in units), self.min_units or 1, units[0].kind
        left = total - count_dropped(sparsity, total)
        if left < min_units * len(units) or any(each.count < min_units for each in units):
            raise BadInput(
                f"sparsity.level={sparsity:g} leaves {left} of {total} {kind}, fewer than {min_units} in each of "
                f"{len(units)} layers; lower sparsity.level or {{at}}.min_units",
                self,
            )

    def _dropped(self, name: str, scores: Tensor, sparsity: float) -> int:
        drop = count_dropped(sparsity, scores.numel())
        if scores.numel() - drop >= (self.min_units or 1):
            return drop
        if self.min_units is None:
            raise RunFailed(
                f"{name}: sparsity {sparsity:g} leaves none of its {scores.numel()} units; use {{at}}.min_units=1", self
            )
        return max(0, scores.numel() - self.min_units)

    def _warn_of_shortfall(self, masks: Masks, kind: str, sparsity: float, of_parameters: float | None = None) -> None:
        """Warns where less went than was asked for, or where a floor decided.

        Args:
            masks: of the units.
            kind: what they are called.
            sparsity: that was asked for, of units or of their parameters.
            of_parameters: the share of the parameters that went, where that is what was asked for.
        """
        removed = sparsity_of(masks) if of_parameters is None else of_parameters
        if removed < sparsity - _NEARLY:
            logger.warning(
                "%.1f %% of the %s went, not the %.1f %% asked for; raise the method's lr or weight, or training.steps",
                100 * removed,
                kind if of_parameters is None else "parameters",
                100 * sparsity,
            )
        at_minimum = [name for name, keep in masks.items() if int(keep.count_nonzero()) == self.min_units]
        if at_minimum:
            logger.warning("only method.min_units=%d %s are left in %s", self.min_units, kind, ", ".join(at_minimum))
