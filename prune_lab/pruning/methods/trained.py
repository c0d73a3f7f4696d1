"""Methods that prune while the model is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.data.samples import Batch
from prune_lab.errors import BadInput, RunFailed
from prune_lab.models.model import PrunableModel
from prune_lab.models.units import Units
from prune_lab.pruning.calibration.blocks import Calibration
from prune_lab.pruning.live_mask import LiveMasks, UnitMask
from prune_lab.pruning.masks import Masks, count_dropped, keep_all_but, keep_global
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.target import Target
from prune_lab.utils.checks import check_choice, check_whole

SCOPES = ("layer", "global")


@dataclass
class TrainedMethod(Method):
    """Scores the units of every layer, and masks those with the lowest scores more and more while training goes on.

    Units are neurons, attention heads or single weights, as the target's pattern says.

    Args:
        scope: ``layer`` removes the same share of every layer, ``global`` the lowest scores of all layers together.
        min_units: a layer keeps at least so many units; a cut that would leave fewer takes them from other layers
            instead. null: such a cut ends the run.
    """

    scope: str = "layer"
    min_units: int | None = 1

    patterns: ClassVar[frozenset[str]] = frozenset({"neurons", "heads", "unstructured"})
    learned: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_choice(self, "scope", SCOPES)
        check_whole(self, "min_units", optional=True, hint="null: a layer may lose all of them, which ends the run")

    def prune(self, model: PrunableModel, calibration: Calibration, target: Target) -> Masks:
        """Never called: the stage trains the model."""
        raise AssertionError("prunes while the model is trained")

    def mask(self, units: Sequence[Units], seed: int) -> LiveMasks:
        """Masks that keep everything yet, with the first scores."""
        generator = torch.Generator().manual_seed(seed)
        return LiveMasks([mask for each in units for mask in self.masks_of(each, generator)])

    def masks_of(self, units: Units, generator: torch.Generator) -> Sequence[UnitMask]:
        """Those of one layer: one by default."""
        return [UnitMask(units, self.first_scores(units, generator), learned=self.learned)]

    def first_scores(self, units: Units, generator: torch.Generator) -> Tensor:
        """Of the shape of the units, float32, on the host; zeros by default."""
        return torch.zeros(units.shape)

    def start(self, live: LiveMasks) -> None:
        """Called once the masks are on the model."""

    def stop(self) -> None:
        """Undoes `start`."""

    def update(self, live: LiveMasks, sparsity: float, final: float) -> None:
        """Sets the masks for the next step.

        Args:
            live: the masks.
            sparsity: of this step: so many of the units of each layer, or of all layers, are masked.
            final: of the last step.
        """
        self.refresh(live)
        scores = {mask.key: mask.scores.detach().cpu() for mask in live}
        keep = self.select_mask(scores, sparsity)
        for mask in live:
            mask.set(keep[mask.key])

    def finish(self, live: LiveMasks, final: float) -> None:
        """Sets the masks that stay; the last step moved the scores once more."""
        self.update(live, final, final)

    def refresh(self, live: LiveMasks) -> None:
        """Computes the scores anew from the weights, before masks are chosen."""

    def select_mask(self, scores: Mapping[str, Tensor], sparsity: float) -> Mapping[str, Tensor]:
        """The keep-masks of scores, of their shapes: exactly ``min_units(sparsity * n)`` go."""
        if self.scope == "layer":
            return {
                name: keep_all_but(score.flatten(), self._dropped(name, score, sparsity)).view_as(score)
                for name, score in scores.items()
            }
        if self.min_units is None:
            keep = keep_global(scores, sparsity)
            for name in keep:
                if not bool(keep[name].any()):
                    raise RunFailed(
                        f"{name}: the cut of {sparsity:.3g} over all layers leaves none of its {scores[name].numel()} "
                        "units; use {at}.min_units=1 (or more), {at}.scope=layer, or a lower sparsity.level",
                        self,
                    )
            return keep
        safe = {name: score.clone() for name, score in scores.items()}
        for score in safe.values():
            flat = score.view(-1)
            flat[flat.topk(min(self.min_units, len(flat))).indices] = torch.inf
        return keep_global(safe, sparsity)

    def penalty(self, live: LiveMasks, sparsity: float, final: float) -> Tensor | None:
        """What is added to the loss; ``sparsity`` of this step, ``final`` of the last."""
        return None

    def before_forward(self, batch: Batch) -> None:
        """Called before every micro-batch."""

    def after_backward(self, live: LiveMasks, sparsity: float) -> None:
        """Called after the gradients of a step are there, before the optimizer moves anything."""

    def state(self) -> dict[str, Tensor]:
        """What the method remembers beside scores and masks, for a training that is interrupted."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Puts it back."""

    def check_counts(self, units: Sequence[Units], sparsity: float) -> None:
        """Whether the floor can be kept.

        Raises:
            BadInput: it cannot.
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
