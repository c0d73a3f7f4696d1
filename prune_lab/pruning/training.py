"""Prunes a model while it is trained, and trains one that is pruned without letting zeros come back."""

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prune_lab.data.samples import Batch, Samples
from prune_lab.errors import BadSetting, owned_by
from prune_lab.models.load import Checkpoint
from prune_lab.models.model import PrunableModel
from prune_lab.models.units import removable
from prune_lab.pruning.live_mask import LiveMasks
from prune_lab.pruning.masks import Masks, sparsity_of
from prune_lab.pruning.methods.trained import TrainedMethod
from prune_lab.pruning.schedule import Schedule
from prune_lab.pruning.target import Target
from prune_lab.training.loop import Hooks, Progress, Training, fit, trainable_weights
from prune_lab.training.lora import trained_beside

logger = logging.getLogger(__name__)
_NEARLY = 0.02  # floors cost a fraction of that


@dataclass
class _MethodHooks(Hooks):
    """Drives a method through the steps of the loop."""

    method: TrainedMethod
    live: LiveMasks
    target: float
    schedule: Schedule
    steps: int
    sparsity: float = field(default=0.0, init=False)

    @property
    def settings(self) -> str:
        """Method, level and schedule."""
        return f"{self.method} {self.target} {self.schedule}"

    def before_step(self, step: int) -> None:
        """Moves the masks to what the schedule asks of this step."""
        self.sparsity = self.target * self.schedule.reached(step, self.steps)
        self.method.update(self.live, self.sparsity, self.target)

    def before_forward(self, batch: Batch) -> None:
        """Tells the method what comes."""
        self.method.before_forward(batch)

    def penalty(self) -> Tensor | None:
        """The method's."""
        return self.method.penalty(self.live, self.sparsity, self.target)

    def after_backward(self) -> None:
        """Lets the method look at the gradients."""
        self.method.after_backward(self.live, self.sparsity)

    def state_dict(self) -> dict[str, Any]:
        """Scores, masks, and what the method remembers."""
        return {"live": self.live.masks.state_dict(), "method": self.method.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts them back."""
        self.live.masks.load_state_dict(state["live"])
        self.method.restore(state["method"])


def prune_while_training(
    model: PrunableModel,
    method: TrainedMethod,
    target: Target,
    schedule: Schedule,
    training: Training,
    samples: Samples,
    device: torch.device,
    *,
    seed: int = 0,
    folder: Path | None = None,
    report: Callable[[int, float], None] | None = None,
) -> tuple[Masks, Progress]:
    """Trains the model with masks on its units that close as the schedule says, and makes the last ones permanent.

    Args:
        model: changed in place; on the host before and after.
        method: chooses the units.
        target: how many, and in which blocks.
        schedule: when.
        training: how.
        samples: what to train on.
        device: where.
        seed: of the method.
        folder: where states are saved.
        report: is told the losses of held-out samples.

    Returns:
        What was kept, bool of the units' shape by their name; and the course of the training.

    Raises:
        BadInput: the target leaves fewer units than the method must keep.
        RunFailed: the loss is not finite, or a layer would lose all its units.
    """
    units = target.units(model)
    method.check_counts(units, target.sparsity)
    teacher = _teacher(model, training)
    live = method.mask(units, seed)
    live.masks.to(device)
    groups = [{"params": live.scores, "lr": method.lr, "weight_decay": 0.0}] if live.scores else []
    hooks = _MethodHooks(method, live, target.sparsity, schedule, training.steps)
    method.start(live)
    try:
        with trainable_weights(model.hf):
            progress = fit(
                model.hf,
                samples,
                training,
                device,
                groups=groups,
                hooks=hooks,
                teacher=teacher,
                folder=folder,
                report=report,
            )
        live.masks.to("cpu")
        method.finish(live, target.sparsity)
    finally:
        method.stop()
        live.bake()
    masks = live.kept
    for each in units:
        each.apply(masks[each.name])  # where members had masks of their own
    _tell(masks, units[0].kind, method, target.sparsity)
    return masks, progress


def check_teacher(model: PrunableModel, training: Training) -> None:
    """Whether the teacher that is asked for can teach the model; reads no more of it than its configuration.

    Raises:
        BadInput: it cannot be read, or has another vocabulary, or other layers or another width where those matter.
    """
    distill = training.distill
    if distill is None or distill.teacher is None:
        return
    own = model.hf.config
    with owned_by(distill, renamed={"path": "teacher"}):
        config = Checkpoint(distill.teacher).load_config()
    vocabulary = config.get_text_config().vocab_size
    if vocabulary != model.vocab_size:
        raise BadSetting(
            distill,
            "teacher",
            f"has a vocabulary of {vocabulary} tokens and the model one of {model.vocab_size}; a teacher must share "
            "the model's tokenizer, or leave it out: the model before the stage is the teacher then",
        )
    shapes = [(each.num_hidden_layers, each.hidden_size) for each in (config, own)]
    if distill.hidden and shapes[0] != shapes[1]:
        raise BadSetting(
            distill,
            "teacher",
            f"has {shapes[0][0]} layers of width {shapes[0][1]} and the model {shapes[1][0]} of {shapes[1][1]}; use "
            "{at}.hidden=0, or a teacher of the model's layers and width",
        )


def _teacher(model: PrunableModel, training: Training) -> torch.nn.Module | None:
    """The one that is asked for, or a copy of the model as it is."""
    if training.distill is None:
        return None
    if training.distill.teacher is None:
        return copy.deepcopy(model.hf)
    with owned_by(training.distill, renamed={"path": "teacher"}):
        return Checkpoint(training.distill.teacher).load().hf.to(model.dtype)


def _tell(masks: Masks, kind: str, method: TrainedMethod, sparsity: float) -> None:
    """Warns where less went than was asked for, or where a floor decided."""
    removed = sparsity_of(masks)
    if removed < sparsity - _NEARLY:
        logger.warning(
            "%.1f %% of the %s went, not the %.1f %% asked for; raise the method's lr or weight, or the steps",
            100 * removed,
            kind,
            100 * sparsity,
        )
    at_minimum = [name for name, keep in masks.items() if int(keep.count_nonzero()) == method.min_units]
    if at_minimum:
        logger.warning("only min_units=%d %s are left in %s", method.min_units, kind, ", ".join(at_minimum))


def tune(
    model: PrunableModel,
    masks: Mapping[str, Tensor],
    training: Training,
    samples: Samples,
    device: torch.device,
    *,
    folder: Path | None = None,
    report: Callable[[int, float], None] | None = None,
) -> Progress:
    """Trains the model, or low-rank updates of its weights; what is zero in a linear layer that was pruned stays zero.

    Args:
        model: changed in place.
        masks: by linear layer or units, what was pruned so far; empty for a dense model.
        training: how.
        samples: what to train on.
        device: where.
        folder: where states are saved.
        report: is told the losses of held-out samples.
    """
    keep = _KeepZeros(model, set(masks))
    teacher = _teacher(model, training)
    if training.lora is None:
        with trainable_weights(model.hf):
            return fit(model.hf, samples, training, device, hooks=keep, teacher=teacher, folder=folder, report=report)
    with trained_beside(model, training.lora, keep.zero, training.seed):
        return fit(model.hf, samples, training, device, teacher=teacher, folder=folder, report=report)


class _KeepZeros(Hooks):
    """Gives weights that were pruned no gradient, so that they stay zero, and what the optimizer knows of them too.

    Attributes:
        zero: by linear layer, ``(out, in)`` bool on the host.
    """

    def __init__(self, model: PrunableModel, pruned: set[str]):
        touched = {member.linear for units in removable(model) if units.name in pruned for member in units.members}
        linears = [linear for linear in model.linears if linear.name in pruned or linear in touched]
        self.zero = {linear.name: linear.weight == 0 for linear in linears}
        self._kept = [(linear.module.weight, linear.seen(self.zero[linear.name])) for linear in linears]
        biases = [linear.module.bias for linear in linears if linear in touched and linear.module.bias is not None]
        self._kept += [(bias, bias.detach() == 0) for bias in biases]

    @torch.no_grad()
    def after_backward(self) -> None:
        """Before the optimizer sees them."""
        for number, (parameter, zero) in enumerate(self._kept):
            if parameter.grad is not None:
                if zero.device != parameter.device:
                    zero = zero.to(parameter.device)
                    self._kept[number] = (parameter, zero)
                parameter.grad.masked_fill_(zero, 0)
