"""Elsa: the pruned weights of least loss of the whole model, by ADMM."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.errors import BadInput, BadSetting
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.masks import Masks
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.methods.selection import keep_in_layer
from prune_lab.pruning.methods.split_training import SCHEDULES, Pull, Split, SplitHooks
from prune_lab.pruning.result import LayerRow, PruningResult
from prune_lab.pruning.target import Target
from prune_lab.pruning.zeros import KeepZeros, masks_of_zeros
from prune_lab.training.loop import fit, trainable_weights
from prune_lab.training.lora import Lora
from prune_lab.training.settings import Training
from prune_lab.training.teacher import make_teacher
from prune_lab.training.updates import Update
from prune_lab.utils.checks import check_choice, check_number, check_whole

logger = logging.getLogger(__name__)
BETA2 = 0.95
"""AdamW's second, of the authors."""
SCORES = ("momentum", "magnitude")
STATES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Elsa(Method):
    """Minimises the loss of the whole model under the constraint that every weight is pruned, by ADMM.

    Each step of AdamW, on all parameters of the model, follows the gradient of the loss, clipped, plus
    ``lam (x - z + u)`` for each weight x that is to be pruned, which the clipping does not touch. Every ``interval``
    steps ``z = P(x + u)`` and ``u += x - z``, where P sets the lowest scores of a weight to zero: as many as its level
    says, or all but N of every M. In the end the weights are P(x). The loss is the next-token cross-entropy, or what
    ``training.distill`` makes of it. The layers have the levels of the allocation; the schedule is not used.

    Args:
        lam: how strongly weights are drawn to their pruned form; where it is too small they never come near to it, and
            the last step destroys the model while the loss of the training looks well.
        lam_schedule: ``constant``, or how lam is reached: ``linear``, ``cosine`` or ``exponential``; u is multiplied by
            the old lam and divided by the new one whenever it changes, which is at the intervals.
        interval: steps between two choices of z.
        score: ``momentum``, ``|v| sqrt(m)`` with m AdamW's second moment, or ``magnitude``, ``|v|``.
        state_device: where z and u are, ``cpu``; null: beside the weights.
        state_dtype: of z and u, ``float32`` or ``bfloat16``.

    Source: arXiv:2510.01650. What differs from the authors' code, as others describe it: ties at the cut do not all go,
    exactly as many do as asked for; z is chosen after every ``interval`` whole steps, not also after the first; with
    several processes every one adds the whole proximal term to gradients that are averaged already; lam changes at the
    intervals only; the form in FP8 and 8-bit AdamW of Elsa-L are missing. As the dual takes full steps, z and u are
    nowhere both different from zero, so that one tensor and a byte a weight hold both: with ``bfloat16`` 3 bytes a
    weight, which is what z in FP8 and u in bfloat16 take.
    """

    lam: float = 0.01
    lam_schedule: str = "constant"
    interval: int = 32
    score: str = "momentum"
    state_device: str | None = None
    state_dtype: str = "float32"

    trains: ClassVar[bool] = True
    scheduled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number(self, "lam", above=0)
        check_choice(self, "lam_schedule", SCHEDULES)
        check_whole(self, "interval", hint="steps")
        check_choice(self, "score", SCORES)
        check_choice(self, "state_device", ("cpu",), optional=True, hint="null: beside the weights")
        check_choice(self, "state_dtype", tuple(STATES))

    def check_training(self, training: Training, update: Update | None) -> None:
        """Checks that all weights are trained to the end, whole and in float32."""
        if training.fsdp:
            raise BadSetting(
                training,
                "fsdp",
                "is not allowed with the method Elsa, which chooses among all entries of a weight; use {at}.fsdp=false",
            )
        if isinstance(update, Lora) or training.patience:
            raise BadInput(
                "method Elsa trains all weights for all of its steps; finetune=lora and {at}.patience are for training "
                "after pruning: use finetune=none, full or distill, and {at}.patience=null",
                training,
            )
        if not training.master_weights:
            raise BadSetting(
                training,
                "master_weights",
                "is not allowed with the method Elsa, whose differences of weights are lost in bfloat16; use "
                "{at}.master_weights=true",
            )

    def settled(self, training: Training) -> Training:
        """Sets AdamW's second beta to that of the authors where the settings have none."""
        return training if training.beta2 is not None else replace(training, beta2=BETA2)

    def prune(self, context: PruningContext) -> PruningResult:
        """Trains the model, and prunes it in the end.

        Raises:
            RunFailed: the loss is not finite.
        """
        model, target, training = context.model, context.target, self.settled(context.training)
        if 2 * self.interval > training.steps:
            logger.warning(
                "method.interval=%d leaves fewer than two choices of the pruned form in training.steps=%d, which are "
                "too few to come near to it: lower the one or raise the other",
                self.interval, training.steps,
            )  # fmt: skip
        zeros = KeepZeros(model, masks_of_zeros(model) if target.keep_zeros else ())
        device = None if self.state_device is None else torch.device(self.state_device)
        linears = target.linears(model)
        splits = [
            Split(
                linear.name,
                linear.module.weight,
                _chooser(linear, target),
                device,
                STATES[self.state_dtype],
            )
            for linear in linears
        ]
        pull = Pull(self.lam, self.lam_schedule, self.interval, training.steps)
        hooks = SplitHooks(splits, pull, self.score == "momentum", zeros, f"{self} {target}")
        samples, teacher = context.training_samples(), make_teacher(model, training)
        with trainable_weights(model.hf):
            progress = fit(
                model.hf,
                samples,
                training,
                context.device,
                hooks=hooks,
                teacher=teacher,
                folder=context.folder,
                report=context.report,
                log=context.log,
            )
        masks = Masks({linear.name: linear.seen(hooks.kept[linear.name]) for linear in linears})
        rows = {name: LayerRow.of_mask(name, keep) for name, keep in masks.items()}
        distances = {str(step): round(distance, 4) for step, distance in hooks.distances.items()}
        return PruningResult(masks, rows, progress=progress, notes={"distances": distances})


def _chooser(linear: PrunableLinear, target: Target) -> Callable[[Tensor], Tensor]:
    """Chooses what is kept of a weight as it is stored, by scores of its stored shape; zeros are the first to go."""
    zero = target.zeros_to_keep(linear.weight)

    def choose(scores: Tensor) -> Tensor:
        gone = None if zero is None else zero.to(scores.device)
        return linear.seen(keep_in_layer(linear.seen(scores), target, linear.name, gone))

    return choose
