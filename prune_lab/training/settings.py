"""The settings of a training."""

import math
from dataclasses import dataclass, field

from torch import distributed

from prune_lab.errors import BadSetting
from prune_lab.training.losses import Distillation
from prune_lab.utils.checks import check_choice, check_flag, check_number, check_seed, check_whole

PRECISIONS = ("no", "bf16", "fp16")
_EPSILON, _BETA1, _BETA2 = 1e-8, 0.9, 0.999  # AdamW's in torch
DECAYS = ("linear", "cosine", "constant")


@dataclass
class Training:
    """How a model is trained.

    Args:
        steps: of the optimizer.
        batch_size: samples a step, all told.
        gradient_accumulation_steps: micro-batches of a step; they divide ``batch_size``.
        lr: the highest learning rate of the weights (AdamW).
        epsilon: added to the root of AdamW's second moment; null: that of the method's authors where a method trains
            (1e-4 for those of `prune_lab.pruning.methods.trained`, but 1e-6 for GRAIN and 1e-8 for SMP and PINS), else
            1e-8.
        beta2: how much of its past AdamW's second moment keeps at a step; null: that of the method's authors where a
            method trains (0.95 for Elsa), else 0.999.
        weight_decay: of matrices; biases, norms and scores have none.
        warmup: share of the steps in which learning rates rise from 0.
        decay: ``linear`` to 0, ``cosine`` to 0, or ``constant``.
        max_grad_norm: of all gradients together, those of scores among them; null: no limit.
        master_weights: whether weights in half precision are float32 while they are trained, which takes 8 bytes a
            weight more than bfloat16; ``false``: bfloat16 weights are trained as they are, and a step of less than
            1/512 of a weight is lost.
        precision: ``no`` (that of the weights), ``bf16`` or ``fp16``: mixed precision.
        fsdp: divides weights, gradients, the optimizer's state and masks among the processes of the run, by PyTorch's
            FSDP2, for models that are larger than a device.
        distill: mixes in the divergence from a teacher; null: none.
        gradient_checkpointing: computes activations again in the backward pass instead of keeping them.
        eval_samples: so many samples are not trained on; their loss is measured.
        eval_every: steps between two measurements.
        patience: ends the training after so many measurements without a lower loss, and goes back to the best; null:
            never.
        save_every: steps between two states in the run folder, from which an interrupted training goes on; 0: none.
        log_every: steps between two lines of the training's series in ``metrics.jsonl`` and at W&B; 0: none.
        part: of a training in several parts with one learning-rate schedule, from 0.
        parts: of such a training.
        steps_before: of other trainings of the run; samples go on where those have ended.
        seed: of the order of the samples, and of dropout.
    """

    steps: int = 200
    batch_size: int = 8
    gradient_accumulation_steps: int = 1
    lr: float = 5e-4
    epsilon: float | None = None
    beta2: float | None = None
    weight_decay: float = 0.1
    warmup: float = 0.1
    decay: str = "linear"
    max_grad_norm: float | None = 1.0
    master_weights: bool = True
    precision: str = "no"
    fsdp: bool = False
    distill: Distillation | None = None
    gradient_checkpointing: bool = False
    eval_samples: int = 0
    eval_every: int = 20
    patience: int | None = None
    # Not in the text of the settings, by which a saved state is known: neither changes what is trained.
    save_every: int = field(default=0, repr=False)
    log_every: int = field(default=10, repr=False)
    part: int = 0
    parts: int = 1
    steps_before: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole(self, "steps", "batch_size", "gradient_accumulation_steps", "eval_every")
        check_whole(self, "eval_samples", "save_every", "log_every", least=0)
        if self.batch_size % self.gradient_accumulation_steps:
            whole = f"{{at}}.batch_size={self.batch_size}"
            raise BadSetting(self, "gradient_accumulation_steps", f"does not divide {whole}")
        check_number(self, "lr", "weight_decay", least=0)
        check_number(self, "warmup", least=0, most=1, hint="a share of the steps")
        check_number(self, "max_grad_norm", above=0, optional=True, hint="null: no limit")
        check_number(self, "epsilon", above=0, optional=True, hint="null: the method's, or 1e-8")
        check_number(self, "beta2", least=0, below=1, optional=True, hint="null: the method's, or 0.999")
        check_flag(self, "gradient_checkpointing", "master_weights", "fsdp")
        check_whole(self, "patience", optional=True, hint="null: never")
        if self.patience is not None and not self.eval_samples:
            raise BadSetting(
                self,
                "patience",
                "with {at}.eval_samples=0 is not allowed; it needs samples that are held out, such as "
                "{at}.eval_samples=16",
            )
        check_whole(self, "parts")
        check_whole(self, "part", least=0, most=self.parts - 1)
        check_whole(self, "steps_before", least=0)
        check_choice(self, "decay", DECAYS)
        check_choice(self, "precision", PRECISIONS)
        if self.fsdp and not distributed.is_available():
            raise BadSetting(
                self, "fsdp", "needs torch.distributed, which this build of torch lacks; use {at}.fsdp=false"
            )
        if self.fsdp and self.precision == "fp16":
            raise BadSetting(
                self, "precision", "with {at}.fsdp=true is not allowed; allowed: no, bf16, which need no scaled losses"
            )
        if self.fsdp and self.distill is not None and self.distill.project:
            raise BadSetting(
                self.distill,
                "project",
                "with training.fsdp=true is not allowed: the maps are not divided; use {at}.project=false",
            )
        check_seed(self)

    def check_encoder(self) -> None:
        """Checks what the training of an encoder cannot do.

        Raises:
            BadSetting: weights are to be divided.
        """
        if self.fsdp:
            raise BadSetting(self, "fsdp", "divides causal language models, and the model is an encoder; use false")

    @property
    def eps(self) -> float:
        """AdamW's epsilon."""
        return _EPSILON if self.epsilon is None else self.epsilon

    @property
    def betas(self) -> tuple[float, float]:
        """AdamW's, of its first and second moment."""
        return _BETA1, _BETA2 if self.beta2 is None else self.beta2

    def logs(self, step: int) -> bool:
        """Whether the series of the training has a line after a step, from 0."""
        return self.log_every > 0 and ((step + 1) % self.log_every == 0 or step + 1 == self.steps)

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
