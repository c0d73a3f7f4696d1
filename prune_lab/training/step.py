"""One step of the optimizer."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import reduce
from operator import add

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from prune_lab.data.samples import Batch, Samples
from prune_lab.errors import RunFailed
from prune_lab.training.accelerator import average
from prune_lab.training.apart import Apart
from prune_lab.training.hooks import Hooks
from prune_lab.training.losses import Projections, loss_of, outputs
from prune_lab.training.settings import Training
from prune_lab.utils.products import fast_products


@dataclass(frozen=True)
class Stepped:
    """What a step gave.

    Attributes:
        loss: the mean over all targets of the step, and the hooks' penalty.
        tokens: of its samples, without padding, in all processes.
        grad_norm: the Euclidean norm of all gradients together, unscaled and not clipped; ``None`` where nobody asks.
        course: what the hooks tell of it.
    """

    loss: float
    tokens: int
    grad_norm: float | None = None
    course: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Stepper:
    """Makes the steps of a training.

    Args:
        accelerator: that model and optimizer were prepared with.
        model: the student.
        optimizer: of its weights, and of parameters beside them.
        hooks: what is done beside.
        teacher: for ``training.distill``; moved to the accelerator's device.
        samples: what to train on.
        training: how.
        projections: that hidden states pass, for ``training.distill``.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    hooks: Hooks
    teacher: nn.Module | None
    samples: Samples
    training: Training
    projections: Projections | None = None

    def __post_init__(self) -> None:
        if self.teacher is not None:
            self.teacher.to(self.accelerator.device)
        weights = list(self.model.parameters())
        own = {id(parameter) for parameter in weights}
        others = [each for group in self.optimizer.param_groups for each in group["params"] if id(each) not in own]
        self._trained = [*weights, *others]  # of the model, and scores beside it
        taught = [] if self.teacher is None else list(self.teacher.parameters())
        self._half = self.training.precision == "bf16" or torch.bfloat16 in {p.dtype for p in (*weights, *taught)}

    def __call__(self, step: int) -> Stepped:
        """Makes a step, from 0.

        Raises:
            RunFailed: the loss is not finite.
        """
        accelerator, training, total = self.accelerator, self.training, 0.0
        self.hooks.before_step(step)
        rows = samples_of(training.steps_before + step, len(self.samples), training.batch_size, training.seed)
        targets = self.samples.count_targets(rows)
        parts = rows.chunk(training.gradient_accumulation_steps)
        apart = Apart(self._trained) if self.hooks.separates else None
        for number, part in enumerate(parts):
            part = part[accelerator.process_index :: accelerator.num_processes]
            batch = self.samples.batch(part, accelerator.device)
            self.hooks.before_forward(batch)
            with accelerator.autocast(), self.products():
                losses = self._losses(batch)
            # the mean over the targets of the whole step, however they fall to micro-batches and processes
            share = accelerator.num_processes * self.samples.count_targets(part) / targets
            losses = [loss * share for loss in (losses if apart else [reduce(add, losses)])]
            self._backward(losses, apart, last=number + 1 == len(parts))
            total += sum(float(loss.detach()) for loss in losses)
        penalty = self.hooks.penalty()
        if penalty is not None:
            accelerator.backward(penalty)
            total += float(penalty.detach())
        if accelerator.num_processes > 1:
            total = average(accelerator, self.optimizer, self.model, total)
        if not math.isfinite(total):
            raise RunFailed(f"the loss of training step {step} is not finite; {self._remedy()}", training)
        norm = self._update(step, measured=training.logs(step))
        return Stepped(total, self.samples.count_tokens(rows), norm, self.hooks.course())

    def products(self) -> AbstractContextManager[object]:
        """Makes products in bfloat16, of mixed precision or of weights that are not trained, fast where they are not.

        Forward passes are made inside.
        """
        return fast_products(torch.bfloat16, self.accelerator.device) if self._half else nullcontext()

    def _backward(self, losses: Sequence[Tensor], apart: Apart | None, *, last: bool) -> None:
        """The backward passes of one micro-batch; where losses are separated, the hooks see the first one's gradients.

        Args:
            losses: that of what is predicted, or of everything, and maybe that of hidden states.
            apart: takes the gradients of the second loss until the hooks have seen all of the first; None: there is
                one loss.
            last: whether it is the last of the step.
        """
        first, *others = losses
        self.accelerator.backward(first, retain_graph=bool(others))
        if apart is None:
            return
        if last:
            scaler = self.accelerator.scaler
            self.hooks.between_losses(1.0 if scaler is None else float(scaler.get_scale()))
            apart.join()
        for loss in others:
            with nullcontext() if last else apart:
                self.accelerator.backward(loss)

    def _losses(self, batch: Batch) -> list[Tensor]:
        """Means over the targets of one micro-batch: of what is predicted, and of the distance of hidden states.

        The first is mixed with the divergence from the teacher; the second is there if it is asked for.
        """
        distill = self.training.distill
        if distill is None or self.teacher is None:
            return [loss_of(outputs(self.model, batch).logits, batch)]
        hidden = distill.hidden > 0
        with torch.no_grad():
            goal = outputs(self.teacher, batch, hidden=hidden)
        mine = outputs(self.model, batch, hidden=hidden)
        return distill.losses(mine, goal, batch, self.projections)

    def _remedy(self) -> str:
        """What may help, of what is not set already."""
        training = self.training
        changes = {
            "{at}.precision=no": training.precision != "no",
            "{at}.master_weights=true": not training.master_weights,
            "a {at}.max_grad_norm such as 1": training.max_grad_norm is None,
        }
        return ", or use ".join([f"lower {{at}}.lr={training.lr:g}", *(name for name, new in changes.items() if new)])

    def _update(self, step: int, *, measured: bool) -> float | None:
        """Moves the weights along the gradients; returns their norm before clipping, where it is ``measured``."""
        self.hooks.after_backward()
        norm: Tensor | None = None
        if self.training.max_grad_norm is not None:
            norm = self.accelerator.clip_grad_norm_(self._trained, self.training.max_grad_norm)
        else:
            self.accelerator.unscale_gradients()  # as clipping does; nothing but of losses that are scaled
            norm = self._norm() if measured else None
        self.hooks.after_clip()
        self.optimizer.step()
        self.hooks.after_step(step)
        self.optimizer.zero_grad()
        return float(_whole(norm)) if measured and norm is not None else None

    def _norm(self) -> Tensor:
        """The norm of all gradients, which stay as they are."""
        return nn.utils.get_total_norm([each.grad for each in self._trained if each.grad is not None])


def _whole(norm: Tensor) -> Tensor:
    """Of gradients that are divided among processes, each of which knows its part."""
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole


def samples_of(step: int, samples: int, batch_size: int, seed: int) -> Tensor:
    """The samples of a step, ``(batch_size,)`` int64: each once an epoch, in an order of its own every epoch.

    It follows from the step alone, so that a training that goes on sees what it would have seen.
    """
    chosen: list[int] = []
    position = step * batch_size
    while len(chosen) < batch_size:
        epoch, offset = divmod(position + len(chosen), samples)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(samples, generator=generator)
        chosen += order[offset : offset + batch_size - len(chosen)].tolist()
    return torch.tensor(chosen)
