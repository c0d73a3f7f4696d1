"""PINS: importance of weights by smoothed gradients, weights that may grow again, and a model that teaches itself."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from prune_lab.errors import BadInput, BadSetting
from prune_lab.models.model import PrunableModel
from prune_lab.models.units import Units
from prune_lab.pruning.live_mask import LiveMasks, UnitMask, weight_before_mask
from prune_lab.pruning.methods.trained import TrainedMethod
from prune_lab.pruning.schedule import Schedule
from prune_lab.pruning.target import Target
from prune_lab.training.losses import IGNORED, Distillation, Outputs, next_tokens, rows_at_once, sum_over_rows
from prune_lab.training.settings import Training
from prune_lab.training.updates import Update
from prune_lab.utils.checks import check_choice, check_flag, check_number, check_whole
from prune_lab.utils.finite import all_finite

NORMALIZATIONS = ("vocabulary", "batch")
LOOKAHEADS = ("sgd", "adamw")


class Importance(UnitMask):
    """What is known of the importance of the weights of one layer, each ``(out, in)`` float32.

    Attributes:
        window: the mean of ``I`` over the steps of the window that is open.
        steps: that are in it, a scalar.
        mean: the moving average of the windows' means.
        deviation: the moving average of how far those are from it.
        windows: how many are over, a scalar.
        level: at which was cut last, a scalar.
    """

    window: Tensor
    steps: Tensor
    mean: Tensor
    deviation: Tensor
    windows: Tensor
    level: Tensor

    def __init__(self, units: Units, scores: Tensor):
        super().__init__(units, scores, learned=False, applied=False)
        for name in ("window", "mean", "deviation"):
            self.register_buffer(name, torch.zeros_like(scores))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("windows", torch.zeros((), dtype=torch.int64))
        self.register_buffer("level", torch.zeros((), dtype=torch.float64))

    def look(self, rate: float) -> Tensor:
        """Returns ``|g (w - rate g)|``, float32, of the weights and their gradients as they are."""
        linear = self.units.members[0].linear
        weight, stored = weight_before_mask(linear), linear.module.get_parameter("parametrizations.weight.original")
        if stored.grad is None:
            return torch.zeros_like(weight, dtype=torch.float32)
        gradient = linear.seen(stored.grad).float()
        return torch.sub(weight.float(), gradient, alpha=rate).mul_(gradient).abs_()

    def add(self, importance: Tensor, position: int) -> None:
        """Adds a step to the open window, in which it has that position, from 0; not if its gradients overflow."""
        if position == 0:
            self.steps.zero_()
        if all_finite(importance):
            self.steps += 1
            self.window.lerp_(importance, 1 / int(self.steps))  # at the first step all of it

    def end_window(self, beta1: float, beta2: float) -> None:
        """Takes the open window into the moving averages, unless it has no step."""
        if not self.steps:
            return
        self.mean.mul_(beta1).add_(self.window, alpha=1 - beta1)
        self.deviation.mul_(beta2).add_((self.window - self.mean).abs_(), alpha=1 - beta2)
        self.windows += 1


@dataclass
class SelfRegularization(Distillation):
    """Mixes cross-entropy and divergence from a teacher for each token by itself, by how sure the model is of it.

    ``mean of alpha T^2 KL(teacher || student) + (1 - alpha) CE``, a mean over targets. ``alpha`` falls with the entropy
    H, in nats, of what the student predicts at a temperature of 1, and gets no gradient.

    Args:
        temperature: T, above 0.
        normalization: ``vocabulary``: ``alpha = 1 - H / log |V|``, with ``|V|`` the size of the vocabulary; ``batch``:
            ``alpha = 1 - H / (2 mean H)``, at least 0, with the mean over the targets of the micro-batch.
    """

    weight: float = field(default=0.5, init=False, repr=False)  # of each token its own
    normalization: str = "vocabulary"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "normalization", NORMALIZATIONS)

    def prediction(self, student: Outputs, teacher: Outputs, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """The mixed loss of what the two models returned, each token with its own share of both."""
        logits, goals = student.logits.flatten(0, 1), teacher.logits.flatten(0, 1)
        wanted = next_tokens(tokens, targets)
        weights = self.confidence(logits, wanted.ne(IGNORED))
        return sum_over_rows(self._mixed, logits, goals, wanted, weights) / wanted.ne(IGNORED).sum()

    def class_prediction(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Likewise of classes, each text with its own share; ``|V|`` is the number of classes then."""
        weights = self.confidence(student.logits, torch.ones_like(labels, dtype=torch.bool))
        return self._mixed(student.logits, teacher.logits, labels, weights) / len(labels)

    @torch.no_grad()
    def confidence(self, logits: Tensor, counted: Tensor) -> Tensor:
        """``alpha`` of each row, ``(rows,)`` float32.

        Args:
            logits: ``(rows, vocab)``.
            counted: ``(rows,)`` bool, which are targets; others are not in the mean.
        """
        parts = logits.split(rows_at_once(logits))
        entropy = torch.cat([torch.special.entr(part.float().softmax(-1)).sum(-1) for part in parts])
        if self.normalization == "vocabulary":
            most = torch.tensor(float(logits.shape[1]), device=entropy.device).log()
        else:
            most = 2 * (entropy * counted).sum() / counted.sum().clamp_min(1)
        return (1 - entropy / most.clamp_min(torch.finfo(torch.float32).tiny)).clamp_(0, 1)

    def _mixed(self, logits: Tensor, goals: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
        """The sum over rows: logits are ``(rows, vocab)``, the others ``(rows,)``."""
        entropy = functional.cross_entropy(logits.float(), wanted, ignore_index=IGNORED, reduction="none")
        divergence = self.temperature**2 * self.divergences(logits, goals)
        return ((weights * divergence + (1 - weights) * entropy) * wanted.ne(IGNORED)).sum()


@dataclass
class PINS(TrainedMethod):
    """Sets the weights of least importance to zero, at intervals, while all weights are trained; they may grow again.

    With ``g`` the clipped gradient of a weight ``w`` and ``eta`` the learning rate of the step, ``I = |g (w - eta g)|``
    is what the loss would change by, to first order, without the weight, after a step of plain gradient descent. ``I``
    is averaged over windows of ``interval`` steps. A moving average of the windows' means (``beta1``, from 0) is the
    importance, one of their distances from it (``beta2``) the uncertainty, and the score is the product. The weights
    with the lowest scores are set to zero after the optimizer's step: every ``interval`` steps while the schedule
    rises, and after every step at the final level. In between they have gradients and grow.

    With ``self_regularization`` the loss is that of `SelfRegularization`. The teacher is the model itself: dense at
    first, and whenever held-out samples of the training text (``training.eval_samples``) have a lower loss than ever
    before, as it is then.

    Args:
        scope: ``global``: one cut over all layers; ``layer``: the same share of every matrix.
        interval: steps of a window, and between two cuts.
        beta1: of the moving average of importance.
        beta2: of that of uncertainty.
        lookahead: ``sgd``: ``I`` as above; ``adamw``: ``I = |g (w + dw)|`` with ``dw`` the step that AdamW makes.
        self_regularization: whether the model teaches itself.
        temperature: of the divergence from the teacher.
        normalization: of the entropy that says how much the teacher counts, see `SelfRegularization`.

    Source: Ren and Zhu, 2023, arXiv:2305.12394, which smoothes as PLATON does (Zhang et al., 2022, arXiv:2206.12562).
    What differs from the authors' code: biases stay, where theirs prunes those of the pruned layers; exactly as many
    weights go as asked for, where theirs leaves what ties at the cut; steps whose gradients overflow are left out
    of the averages; the teacher is chosen by the loss of samples held out of the training text, with the masks applied,
    where theirs takes the split that is reported; of a language model the loss is that of each token; the last
    phase is a share of the steps (``schedule.cooldown``).
    """

    scope: str = "global"
    interval: int = 10
    beta1: float = 0.85
    beta2: float = 0.99
    lookahead: str = "sgd"
    self_regularization: bool = False
    temperature: float = 2.0
    normalization: str = "vocabulary"

    patterns: ClassVar[frozenset[str]] = frozenset({"unstructured", "N:M"})
    for_encoders: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "interval", hint="steps")
        check_number(self, "beta1", "beta2", least=0, below=1)
        check_choice(self, "lookahead", LOOKAHEADS)
        check_flag(self, "self_regularization")
        check_number(self, "temperature", above=0)
        check_choice(self, "normalization", NORMALIZATIONS)

    @property
    def teaches_itself(self) -> bool:
        """Returns whether the loss asks for it."""
        return self.self_regularization

    def check_training(self, training: Training, update: Update | None) -> None:
        """Checks that the model can teach itself where it is to."""
        super().check_training(training, update)
        if not self.self_regularization:
            return
        if training.distill is not None:
            raise BadInput(
                "{at}.self_regularization=true brings a loss and a teacher of its own, so that training.distill "
                "(finetune=distill) is not allowed beside it; leave one of them out",
                self,
            )
        if not training.eval_samples:
            raise BadSetting(
                training,
                "eval_samples",
                "is not allowed with method.self_regularization=true, which takes its teacher by the loss of samples "
                "that are held out; use {at}.eval_samples=16, or more",
            )

    def check_model(self, model: PrunableModel, target: Target) -> None:
        """Checks that the model says classes, where it is to teach itself by how sure it is of them."""
        super().check_model(model, target)
        if self.self_regularization and model.is_encoder and model.hf.config.num_labels == 1:
            raise BadSetting(
                self,
                "self_regularization",
                f"weighs texts by how sure a model is of their class, and {model.name} says values; use false",
            )

    def check_schedule(self, schedule: Schedule, training: Training) -> None:
        """Checks that a window is full before the last phase, and that there is one."""
        steps = training.steps
        last = next((step for step in range(steps) if schedule.reached(step, steps) >= 1), None)
        if last is None:
            raise BadInput(
                f"the schedule has no step at the final level in training.steps={steps}, and the method PINS trains "
                "what is left there; use schedule.cooldown=0.3, or more steps",
                schedule,
            )
        if last < self.interval:
            raise BadSetting(
                self,
                "interval",
                f"is not allowed: the schedule is at its final level after {last} of training.steps={steps}, before "
                "one window of so many steps is full; use a smaller {at}.interval, or more steps",
            )

    def settled(self, training: Training) -> Training:
        """Leaves AdamW's epsilon at torch's, which the authors have, and sets the loss."""
        if not self.self_regularization:
            return training
        loss = SelfRegularization(temperature=self.temperature, normalization=self.normalization)
        return replace(training, distill=loss)

    def masks_of(self, units: Units, generator: torch.Generator) -> list[Importance]:
        """Returns what is known of the importance of one layer's weights."""
        return [Importance(units, self.first_scores(units, generator))]

    def update(self, live: LiveMasks, sparsity: float, final: float) -> None:
        """Leaves the weights alone before a step; they are cut after it."""

    @torch.no_grad()
    def after_clip(self, live: LiveMasks, step: int, rate: float) -> None:
        """Looks at the gradients, with the weights that they are of; a new window begins every ``interval`` steps."""
        position = step % self.interval
        for mask in _known(live):
            if step and position == 0:
                mask.end_window(self.beta1, self.beta2)
            if self.lookahead == "sgd":
                mask.add(mask.look(rate), position)

    @torch.no_grad()
    def after_step(self, live: LiveMasks, step: int, sparsity: float, final: float) -> None:
        """Sets weights to zero where it is time to."""
        position, masks = step % self.interval, _known(live)
        if self.lookahead == "adamw":
            for mask in masks:
                mask.add(mask.look(0.0), position)  # the optimizer has moved the weights
        if sparsity == 0 or (position and sparsity != final):
            return
        if position == 0 or any(not mask.windows or float(mask.level) != sparsity for mask in masks):
            self.cut(live, sparsity, final)
        for mask in masks:
            mask.clear()

    def finish(self, live: LiveMasks, final: float) -> None:
        """Sets the weights to zero for good."""
        self.cut(live, final, final)
        for mask in live:
            mask.applied = True

    def cut(self, live: LiveMasks, sparsity: float, final: float) -> None:
        """Chooses anew which weights are zero."""
        super().update(live, sparsity, final)
        for mask in _known(live):
            mask.level.fill_(sparsity)

    @torch.no_grad()
    def refresh(self, live: LiveMasks) -> None:
        """Makes scores of what is known: the product of both averages."""
        for mask in _known(live):
            mask.scores.copy_(mask.mean * mask.deviation)


def _known(live: LiveMasks) -> list[Importance]:
    return [mask for mask in live if isinstance(mask, Importance)]
