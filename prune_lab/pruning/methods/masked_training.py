"""Trains a model with masks on its units that close step by step, and makes the last ones permanent."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prune_lab.data.samples import Batch
from prune_lab.errors import BadInput
from prune_lab.models.units import Units
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.live_mask import LiveMasks
from prune_lab.pruning.masks import Masks
from prune_lab.pruning.schedule import Schedule
from prune_lab.pruning.zeros import KeepZeros, masks_of_zeros
from prune_lab.training.hooks import Hooks
from prune_lab.training.loop import fit, trainable_head, trainable_weights
from prune_lab.training.progress import Progress
from prune_lab.training.settings import Training
from prune_lab.training.teacher import follow, make_teacher

logger = logging.getLogger(__name__)


class MaskPolicy(ABC):
    """Decides how masks move while a model is trained.

    A policy holds settings only. Whatever it remembers of one training lives in the masks, as parameters, buffers or
    extra state of theirs, so that it is saved and restored with them.
    """

    freezes: ClassVar[bool] = False
    """Whether the weights stay as they are, so that nothing but the scores is trained, and an encoder's head."""

    @property
    def teaches_itself(self) -> bool:
        """Returns whether the model is its own teacher, with the weights that held-out samples liked best so far."""
        return False

    separates: ClassVar[bool] = False
    """Whether it looks at gradients of what is predicted alone, see `between_losses`."""

    def settled(self, training: Training) -> Training:
        """Returns how it is trained, with the method's own values for what the settings leave to it."""
        return training

    @abstractmethod
    def make_masks(self, units: Sequence[Units], seed: int) -> LiveMasks:
        """Puts masks on the model that keep everything yet, with the first scores."""

    def parameter_groups(self, live: LiveMasks) -> list[dict[str, Any]]:
        """Returns what the optimizer trains besides the weights, as it takes groups; nothing by default."""
        return []

    @abstractmethod
    def update(self, live: LiveMasks, sparsity: float, final: float) -> None:
        """Sets the masks for the next step.

        Args:
            live: the masks.
            sparsity: of this step: so many of the units of each layer, or of all layers, are masked.
            final: of the last step.
        """

    def finish(self, live: LiveMasks, final: float) -> None:
        """Sets the masks that stay; the last step moved the scores once more."""
        self.update(live, final, final)

    def penalty(self, live: LiveMasks, sparsity: float, final: float) -> Tensor | None:
        """Returns what is added to the loss, a scalar; ``sparsity`` is that of this step, ``final`` of the last."""
        return None

    def measured(self, live: LiveMasks) -> AbstractContextManager[None]:
        """Inside, masks are as held-out samples are measured with them: all are applied."""
        return live.applied()

    def before_forward(self, live: LiveMasks, batch: Batch) -> None:  # noqa: B027 - most need nothing of it
        """Looks at every micro-batch before its forward pass."""

    def between_losses(self, live: LiveMasks, scale: float) -> None:  # noqa: B027 - most need nothing of it
        """Looks at the gradients of what a step predicts, which are multiplied by ``scale``; see `Hooks`."""

    def after_backward(self, live: LiveMasks, sparsity: float) -> None:  # noqa: B027 - most need nothing of it
        """Looks at the gradients of a step, before the optimizer moves anything."""

    def after_clip(self, live: LiveMasks, step: int, rate: float) -> None:  # noqa: B027 - most need nothing of it
        """Looks at the gradients of a step, from 0, once they are clipped; ``rate`` is its learning rate of weights."""

    def after_step(self, live: LiveMasks, step: int, sparsity: float, final: float) -> None:  # noqa: B027 - likewise
        """Looks at the weights once the optimizer has moved them; their gradients are still there."""


@dataclass
class PolicyHooks(Hooks):
    """Drives a policy through the steps of the loop."""

    policy: MaskPolicy
    live: LiveMasks
    context: PruningContext
    zeros: KeepZeros
    teacher: nn.Module | None = None  # that follows the model
    sparsity: float = field(default=0.0, init=False)
    _step: int = field(default=0, init=False)
    _taught_since: int = field(default=0, init=False)  # steps before the teacher's weights
    _penalty: Tensor | None = field(default=None, init=False)  # of the last step
    _changed: float = field(default=0.0, init=False)  # shares of the mask, added up since the last line of the series

    @property
    def separates(self) -> bool:
        """Whether the policy does."""
        return self.policy.separates

    @property
    def settings(self) -> str:
        """Method, level and schedule."""
        return f"{self.policy} {self._final} {self._schedule}"

    def before_step(self, step: int) -> None:
        """Moves the masks to what the schedule asks of this step."""
        training, self._step = self.context.training, step
        self.sparsity = self._final * self._schedule.reached(step, training.steps)
        self.policy.update(self.live, self.sparsity, self._final)
        if training.logs(step - 1):
            self._changed = 0.0
        self._count()

    def course(self) -> Mapping[str, float]:
        """Returns the policy's penalty, and the share of the masks that changed since the line before, added up.

        Where the teacher follows the model, also how many steps had been made when it got its weights.
        """
        course = {} if self._penalty is None else {"penalty": float(self._penalty)}
        if self.teacher is not None:
            course["teacher_step"] = self._taught_since
        return course | ({"mask_changes": self._changed} if self.context.training.log_every else {})

    def before_forward(self, batch: Batch) -> None:
        """Shows the policy what comes."""
        self.policy.before_forward(self.live, batch)

    def penalty(self) -> Tensor | None:
        """Returns the policy's penalty."""
        penalty = self.policy.penalty(self.live, self.sparsity, self._final)
        self._penalty = None if penalty is None else penalty.detach()
        return penalty

    def between_losses(self, scale: float) -> None:
        """Shows the policy the gradients of what is predicted."""
        self.policy.between_losses(self.live, scale)

    def after_backward(self) -> None:
        """Lets the policy look at the gradients; weights that were zero before the training get none."""
        self.zeros.after_backward()
        self.policy.after_backward(self.live, self.sparsity)

    def after_clip(self) -> None:
        """Lets the policy look at the gradients as they move the weights."""
        training = self.context.training
        self.policy.after_clip(self.live, self._step, training.lr * training.rate(self._step))

    def after_step(self, step: int) -> None:
        """Lets the policy look at the weights."""
        self.policy.after_step(self.live, step, self.sparsity, self._final)
        self._count()

    def measured(self) -> AbstractContextManager[None]:
        """Inside, masks are as the policy measures with them."""
        return self.policy.measured(self.live)

    def improved(self, model: nn.Module, steps: int) -> None:
        """Makes the model as it is its own teacher, where the policy wants that."""
        if self.teacher is not None:
            follow(self.teacher, model)
            self._taught_since = steps
            logger.info("the teacher has the weights after %d steps", steps)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the masks (scores, masks, what the policy remembers in them) and of the teacher."""
        state: dict[str, Any] = {"masks": self.live.masks.state_dict()}
        if self.teacher is not None:
            state["teacher"] = {"step": self._taught_since, "weights": dict(self.teacher.named_parameters())}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict()`.

        Raises:
            BadInput: the state is one of an earlier version.
        """
        if "masks" not in state:
            raise BadInput(
                "the saved state of this pruning was made by an earlier version of prune_lab; remove the folder "
                f"{self.context.folder} to start anew"
            )
        self.live.masks.load_state_dict(state["masks"])
        if self.teacher is not None:
            self._taught_since, weights = state["teacher"]["step"], state["teacher"]["weights"]
            with torch.no_grad():
                for name, parameter in self.teacher.named_parameters():
                    parameter.copy_(weights[name])

    def _count(self) -> None:
        """Adds up how much of the masks has changed."""
        if self.context.training.log_every:
            self._changed += self.live.changed
        for mask in self.live:
            mask.changed = None

    @property
    def _final(self) -> float:
        return self.context.target.sparsity

    @property
    def _schedule(self) -> Schedule:
        return self.context.schedule


def train_with_masks(policy: MaskPolicy, units: Sequence[Units], context: PruningContext) -> tuple[Masks, Progress]:
    """Trains the context's model in place, with masks that close as the schedule says.

    Args:
        policy: how the masks move.
        units: what is masked.
        context: the rest.

    Returns:
        What was kept, bool of the units' shape by their name; and the course of the training.

    Raises:
        RunFailed: the loss is not finite, or a layer would lose all its units.
    """
    model, training = context.model, policy.settled(context.training)
    samples, teacher = context.training_samples(), make_teacher(model, training)
    zeros = KeepZeros(model, masks_of_zeros(model) if context.target.keep_zeros else ())
    live = policy.make_masks(units, context.seed)
    if context.target.keep_zeros:
        for mask in live:
            mask.keep_zeros()
    live.masks.to(context.device)
    try:
        with trainable_head(model.head) if policy.freezes else trainable_weights(model.hf):
            progress = fit(
                model.hf,
                samples,
                training,
                context.device,
                groups=policy.parameter_groups(live),
                hooks=PolicyHooks(policy, live, context, zeros, teacher if policy.teaches_itself else None),
                teacher=teacher,
                folder=context.folder,
                report=context.report,
                log=context.log,
            )
        live.masks.to("cpu")
        policy.finish(live, context.target.sparsity)
    finally:
        live.masks.to("cpu")  # as the model is, also after an error, which must not be hidden by one of devices
        live.bake()
    masks = live.kept
    for each in units:
        each.apply(masks[each.name])  # where members had masks of their own
    return masks, progress
