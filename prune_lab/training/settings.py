"""The settings of a training."""

import math
from dataclasses import dataclass

from prune_lab.errors import BadInput
from prune_lab.training.losses import Distillation

PRECISIONS = ("no", "bf16", "fp16")
DECAYS = ("linear", "cosine", "constant")


@dataclass
class Training:
    """How a model is trained.

    Args:
        steps: of the optimizer.
        batch_size: samples a step, all told.
        gradient_accumulation_steps: micro-batches of a step; they divide ``batch_size``.
        lr: the highest learning rate of the weights (AdamW).
        weight_decay: of matrices; biases, norms and scores have none.
        warmup: share of the steps in which learning rates rise from 0.
        decay: ``linear`` to 0, ``cosine`` to 0, or ``constant``.
        max_grad_norm: of all gradients together; null: no limit.
        precision: ``no`` (that of the weights), ``bf16`` or ``fp16``: mixed precision.
        distill: mixes in the divergence from the model as it was before training; null: none.
        gradient_checkpointing: computes activations again in the backward pass instead of keeping them.
        eval_samples: so many samples are not trained on; their loss is measured.
        eval_every: steps between two measurements.
        patience: ends the training after so many measurements without a lower loss, and goes back to the best; null:
            never.
        save_every: steps between two states in the run folder, from which an interrupted training goes on; 0: none.
        part: of a training in several parts with one learning-rate schedule, from 0.
        parts: of such a training.
        seed: of the order of the samples, and of dropout.
    """

    steps: int = 200
    batch_size: int = 8
    gradient_accumulation_steps: int = 1
    lr: float = 5e-4
    weight_decay: float = 0.1
    warmup: float = 0.1
    decay: str = "linear"
    max_grad_norm: float | None = 1.0
    precision: str = "no"
    distill: Distillation | None = None
    gradient_checkpointing: bool = False
    eval_samples: int = 0
    eval_every: int = 20
    patience: int | None = None
    save_every: int = 0
    part: int = 0
    parts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        least_of = {
            "steps": 1,
            "batch_size": 1,
            "gradient_accumulation_steps": 1,
            "eval_samples": 0,
            "eval_every": 1,
            "save_every": 0,
        }
        for name, least in least_of.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise BadInput(f"training.{name}={value!r} is not allowed; it is a whole number of at least {least}")
        if self.batch_size % self.gradient_accumulation_steps:
            raise BadInput(
                f"training.gradient_accumulation_steps={self.gradient_accumulation_steps} does not divide "
                f"training.batch_size={self.batch_size}"
            )
        for name, high in {"lr": math.inf, "weight_decay": math.inf, "warmup": 1.0}.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= high:
                raise BadInput(f"training.{name}={value!r} is out of range; allowed: [0, {high:g}]")
        if not isinstance(self.gradient_checkpointing, bool):
            raise BadInput(
                f"training.gradient_checkpointing={self.gradient_checkpointing!r} is not allowed; it is true or false"
            )
        if self.patience is not None and (type(self.patience) is not int or self.patience < 1 or not self.eval_samples):
            raise BadInput(
                f"training.patience={self.patience!r} with training.eval_samples={self.eval_samples} is not allowed; "
                "it is a whole number of at least 1 (or null), and needs samples that are held out, such as "
                "training.eval_samples=16"
            )
        if self.decay not in DECAYS:
            raise BadInput(f"training.decay={self.decay!r} is unknown; allowed: {', '.join(DECAYS)}")
        if self.precision not in PRECISIONS:
            raise BadInput(f"training.precision={self.precision!r} is unknown; allowed: {', '.join(PRECISIONS)}")

    def rate(self, step: int) -> float:
        """The share of the highest learning rate at a step, from 0."""
        step, steps = step + self.part * self.steps, self.steps * self.parts
        before = int(self.warmup * steps)
        if step < before:
            return (step + 1) / before
        if self.decay == "constant":
            return 1.0
        left = (steps - step) / max(1, steps - before)
        return left if self.decay == "linear" else 0.5 * (1 - math.cos(math.pi * left))
