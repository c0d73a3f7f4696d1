"""The training loop: on accelerate, with steps as its unit, saved and continued where it was."""

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from prune_lab.data.samples import Batch, Samples
from prune_lab.errors import BadInput, BadSetting, RunFailed
from prune_lab.training.held_out import HeldOut, split
from prune_lab.training.lora import Lora
from prune_lab.training.losses import Distillation, language_loss, outputs
from prune_lab.utils.checks import check_choice, check_flag, check_number, check_seed, check_whole
from prune_lab.utils.files import write_json

logger = logging.getLogger(__name__)

PRECISIONS = ("no", "bf16", "fp16")
DECAYS = ("linear", "cosine", "constant")
_WHOLE_WEIGHTS = ("NO", "MULTI_CPU", "MULTI_GPU")  # accelerate's names of what leaves every process all weights


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
        lora: trains low-rank updates of the blocks' weights instead of the weights; null: all weights.
        gradient_checkpointing: computes activations again in the backward pass instead of keeping them.
        eval_samples: so many samples are not trained on; their loss is measured.
        eval_every: steps between two measurements.
        patience: ends the training after so many measurements without a lower loss, and goes back to the best; null:
            never.
        save_every: steps between two states in the run folder, from which an interrupted training goes on; 0: none.
        part: of a training in several parts with one learning-rate schedule, from 0.
        parts: of such a training.
        after_pruning: whether the stage ``finetune`` trains; methods that prune while the model is trained always do.
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
    lora: Lora | None = None
    gradient_checkpointing: bool = False
    eval_samples: int = 0
    eval_every: int = 20
    patience: int | None = None
    save_every: int = 0
    part: int = 0
    parts: int = 1
    after_pruning: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole(self, "steps", "batch_size", "gradient_accumulation_steps", "eval_every")
        check_whole(self, "eval_samples", "save_every", least=0)
        if self.batch_size % self.gradient_accumulation_steps:
            name, whole = "gradient_accumulation_steps", f"{{at}}.batch_size={self.batch_size}"
            raise BadSetting(self, name, f"does not divide {whole}")
        check_number(self, "lr", "weight_decay", least=0)
        check_number(self, "warmup", least=0, most=1, hint="a share of the steps")
        check_number(self, "max_grad_norm", above=0, optional=True, hint="null: no limit")
        check_flag(self, "gradient_checkpointing", "after_pruning")
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
        check_choice(self, "decay", DECAYS)
        check_choice(self, "precision", PRECISIONS)
        check_seed(self)

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


class Hooks:
    """What is done beside the training; here nothing."""

    settings = ""
    """What a saved state depends on besides `Training`, in words."""

    def before_step(self, step: int) -> None:
        """Before the first forward pass of a step."""

    def before_forward(self, batch: Batch) -> None:
        """Before the forward pass of every micro-batch."""

    def penalty(self) -> Tensor | None:
        """Added to the loss of every step."""
        return None

    def after_backward(self) -> None:
        """Once the gradients of a step are there."""

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts a saved state back."""


@dataclass
class Progress:
    """What a training did."""

    losses: list[float] = field(default_factory=list)  # of every step, penalty included
    held_out: dict[int, float] = field(default_factory=dict)  # the loss of held-out samples, by steps made before
    seconds: float = 0.0
    resumed_at: int = 0
    trained_parameters: int = 0
    optimizer_bytes: int = 0

    def loss(self, steps: int = 10) -> float:
        """The mean of the last steps."""
        recent = self.losses[-steps:]
        return sum(recent) / len(recent)

    def state_dict(self) -> dict[str, Any]:
        """What a training that goes on has to know of the steps before."""
        return {"losses": self.losses, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts it back."""
        self.losses, self.seconds = list(state["losses"]), state["seconds"]


def fit(
    model: nn.Module,
    samples: Samples,
    training: Training,
    device: torch.device,
    *,
    groups: Sequence[dict[str, Any]] = (),
    hooks: Hooks | None = None,
    teacher: nn.Module | None = None,
    folder: Path | None = None,
    report: Callable[[int, float], None] | None = None,
) -> Progress:
    """Trains a causal language model in place.

    Args:
        model: in the type it is trained in; its parameters that require gradients are trained.
        samples: what to train on.
        training: how.
        device: where; the model comes back to the host.
        groups: further parameter groups of the optimizer, each with its own ``lr``; not among the model's parameters.
        hooks: what is done beside.
        teacher: for ``training.distill``.
        folder: where states are saved; removed when the training is done.
        report: is told the losses of held-out samples.

    Raises:
        RunFailed: the loss is not finite.
        TrialStopped: ``report`` said so.
        BadInput: there are no samples, or the folder has states of a training with other settings.
    """
    if len(samples) <= training.eval_samples:
        raise BadInput(
            f"there is no sample to train on: {len(samples)} in all, {{at}}.eval_samples={training.eval_samples}; "
            "give a longer text, a smaller data.seqlen, or hold out fewer",
            training,
        )
    samples, others = split(samples, training.eval_samples, training.seed)
    held_out = HeldOut(others, training.eval_every, training.patience, training.batch_size, report)
    hooks = hooks or Hooks()
    torch.manual_seed(training.seed)  # of dropout
    accelerator = _accelerator(training, device)
    if training.batch_size // training.gradient_accumulation_steps < accelerator.num_processes:
        raise BadInput(
            f"{{at}}.batch_size={training.batch_size} in {training.gradient_accumulation_steps} micro-batches "
            f"leaves nothing for some of {accelerator.num_processes} processes; raise {{at}}.batch_size or lower "
            "{at}.gradient_accumulation_steps",
            training,
        )
    optimizer = torch.optim.AdamW([*_weight_groups(model, training), *groups], lr=training.lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, training.rate)
    model.to(device)
    _checkpoint_activations(model, training.gradient_checkpointing)
    if teacher is not None:
        teacher.to(device)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    progress, saved = Progress(), _shared(accelerator, folder) if training.save_every else None
    accelerator.register_for_checkpointing(scheduler, hooks, held_out, progress)
    settings = f"{training} {hooks.settings}".strip()
    progress.trained_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    first = progress.resumed_at = _resume(accelerator, saved, settings)
    start = time.perf_counter() - progress.seconds
    model.train()
    try:
        for step in range(first, training.steps):
            if held_out.measure(model, step, device):
                logger.info("training ends at step %d: the loss of held-out samples no longer falls", step)
                break
            hooks.before_step(step)
            progress.losses.append(_step(accelerator, prepared, optimizer, hooks, teacher, samples, training, step))
            scheduler.step()
            _log(step, training, progress)
            if saved is not None and (step + 1) % training.save_every == 0 and step + 1 < training.steps:
                progress.seconds = time.perf_counter() - start
                _save(accelerator, saved, step + 1, settings)
        held_out.measure(model, len(progress.losses), device, last=True)
        held_out.restore_best(model)
        progress.held_out = held_out.losses
        progress.optimizer_bytes = _bytes(optimizer)
    finally:
        _checkpoint_activations(model, False)
        model.eval()
        model.to("cpu")
        accelerator.free_memory()
    progress.seconds = time.perf_counter() - start
    accelerator.wait_for_everyone()
    if saved is not None and accelerator.is_main_process:
        shutil.rmtree(saved, ignore_errors=True)
    return progress


def _step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    hooks: Hooks,
    teacher: nn.Module | None,
    samples: Samples,
    training: Training,
    step: int,
) -> float:
    """One step of the optimizer; returns its loss."""
    total = 0.0
    rows = samples_of(step, len(samples), training.batch_size, training.seed)
    targets = samples.count_targets(rows)
    for part in rows.chunk(training.gradient_accumulation_steps):
        part = part[accelerator.process_index :: accelerator.num_processes]
        batch = samples.batch(part, accelerator.device)
        hooks.before_forward(batch)
        with accelerator.autocast():
            if training.distill is not None and teacher is not None:
                hidden = training.distill.hidden > 0
                with torch.no_grad():
                    goal = outputs(teacher, batch, hidden=hidden)
                loss = training.distill(outputs(model, batch, hidden=hidden), goal, batch.tokens, batch.targets)
            else:
                loss = language_loss(outputs(model, batch).logits, batch.tokens, batch.targets)
        # the mean over the targets of the whole step, however they fall to micro-batches and processes
        loss = loss * (accelerator.num_processes * samples.count_targets(part) / targets)
        accelerator.backward(loss)
        total += float(loss.detach())
    penalty = hooks.penalty()
    if penalty is not None:
        accelerator.backward(penalty)
        total += float(penalty.detach())
    if accelerator.num_processes > 1:
        total = _share(accelerator, optimizer, model, total)
    if not math.isfinite(total):
        raise RunFailed(
            f"the loss of training step {step} is not finite; lower {{at}}.lr, or use {{at}}.precision=no", training
        )
    hooks.after_backward()
    if training.max_grad_norm is not None:
        accelerator.clip_grad_norm_(model.parameters(), training.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return total


def _share(accelerator: Accelerator, optimizer: torch.optim.Optimizer, model: nn.Module, total: float) -> float:
    """The mean over processes of the loss, and of the gradients of what is no part of the model: scores."""
    own = {id(parameter) for parameter in model.parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in own and parameter.grad is not None:
                parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")
    return float(accelerator.reduce(torch.tensor(total, device=accelerator.device), reduction="mean"))


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


def _checkpoint_activations(model: nn.Module, on: bool) -> None:
    """Switches recomputation on or off, by the name that transformers has for it, which is a new one."""
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    elif any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        getattr(model, f"{kind}_checkpointing_disable")()


def _bytes(optimizer: torch.optim.Optimizer) -> int:
    """What an optimizer remembers."""
    states = (value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))
    return sum(value.numel() * value.element_size() for value in states)


def _weight_groups(model: nn.Module, training: Training) -> Iterable[dict[str, Any]]:
    """Matrices decay, all else does not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    yield {"params": [p for p in trained if p.dim() >= 2], "weight_decay": training.weight_decay}
    yield {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0}


def _accelerator(training: Training, device: torch.device) -> Accelerator:
    AcceleratorState._reset_state()  # a second training in one process may have another precision
    accelerator = Accelerator(mixed_precision=training.precision, cpu=device.type == "cpu")
    if accelerator.distributed_type.value not in _WHOLE_WEIGHTS:
        raise BadInput(
            f"accelerate is configured for {accelerator.distributed_type.value}, which splits weights among processes, "
            "and zeros are kept on whole ones; use processes with a model each (accelerate launch --multi_gpu)"
        )
    return accelerator


def _shared(accelerator: Accelerator, folder: Path | None) -> Path | None:
    """The first process' folder, for all of them."""
    return broadcast_object_list([folder])[0] if accelerator.num_processes > 1 else folder


def _save(accelerator: Accelerator, saved: Path, step: int, settings: str) -> None:
    """A state appears whole: it counts once ``latest.json`` names it; the one before is removed then."""
    state = saved / f"step-{step}"
    accelerator.save_state(str(state))
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    write_json(saved / "latest.json", {"step": step, "settings": settings})
    for other in saved.glob("step-*"):
        if other != state:
            shutil.rmtree(other, ignore_errors=True)


def _resume(accelerator: Accelerator, saved: Path | None, settings: str) -> int:
    if saved is None or not (saved / "latest.json").is_file():
        return 0
    latest = json.loads((saved / "latest.json").read_text(encoding="utf-8"))
    if latest["settings"] != settings:
        raise BadInput(
            f"{saved} holds the state of a training with other settings ({latest['settings']}); remove it to start "
            "anew, or use the same settings to go on"
        )
    step = int(latest["step"])
    accelerator.load_state(str(saved / f"step-{step}"))
    logger.info("training goes on at step %d", step)
    return step


def _log(step: int, training: Training, progress: Progress) -> None:
    every = max(1, training.steps // 10)
    if (step + 1) % every == 0:
        logger.info("step %d of %d: loss %.4f", step + 1, training.steps, progress.loss(every))


@contextmanager
def trainable_weights(model: nn.Module) -> Iterator[None]:
    """Lets all parameters take gradients for a while."""
    model.requires_grad_(True)
    try:
        yield
    finally:
        model.requires_grad_(False)
        model.zero_grad(set_to_none=True)
