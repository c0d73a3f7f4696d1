"""The training loop: on accelerate, with steps as its unit, saved and continued where it was."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from prune_lab.data.samples import Samples
from prune_lab.errors import BadInput
from prune_lab.training.accelerator import accelerator_for, mean
from prune_lab.training.held_out import HeldOut, split
from prune_lab.training.hooks import Hooks
from prune_lab.training.losses import Projections
from prune_lab.training.masters import check_types, widened
from prune_lab.training.progress import Progress
from prune_lab.training.series import Series, SeriesLog
from prune_lab.training.settings import Training
from prune_lab.training.states import SavedStates, Stateful
from prune_lab.training.step import Stepper
from prune_lab.utils.collectives import naming_who_is_lost
from prune_lab.utils.progress import track

if TYPE_CHECKING:  # PyTorch's FSDP takes a second to import
    from prune_lab.training.sharded import Shards

logger = logging.getLogger(__name__)


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
    log: SeriesLog | None = None,
) -> Progress:
    """Trains a language model in place.

    Args:
        model: its parameters that require gradients are trained; those in half precision are in float32 meanwhile,
            unless ``training.master_weights`` is false.
        samples: what to train on.
        training: how.
        device: where; the model comes back to the host.
        groups: further parameter groups of the optimizer, each with its own ``lr``; not among the model's parameters.
        hooks: what is done beside.
        teacher: for ``training.distill``.
        folder: where states are saved; removed when the training is done.
        report: is told the losses of held-out samples.
        log: is told the course of the training, see `Series`.

    Raises:
        RunFailed: the loss is not finite, or one of several processes is gone.
        TrialStopped: ``report`` said so.
        BadInput: there are no samples, the type of the weights cannot be trained so, or the folder has states of a
            training with other settings.
    """
    check_types(next(model.parameters()).dtype, training, device)
    hooks, accelerator = hooks or Hooks(), accelerator_for(training, device)
    with naming_who_is_lost(), _placed(model, training, hooks, teacher, device) as shards:
        return _fit(accelerator, model, shards, samples, training, device, groups, hooks, teacher, folder, report, log)


@contextmanager
def _placed(
    model: nn.Module, training: Training, hooks: Hooks, teacher: nn.Module | None, device: torch.device
) -> "Iterator[Shards | None]":
    """Has the model on the device for the time of its training: whole, or in parts of which each process has its own.

    What is trained is the model itself, or the copy of it that is divided.
    """
    if training.fsdp:
        from prune_lab.training.sharded import sharded  # PyTorch's FSDP takes a second to import

        with sharded(model, training, teacher, device) as shards:
            hooks.follow(shards)
            yield shards
        return
    with widened(model, wanted=training.master_weights):
        try:
            model.to(device)
            yield None
        finally:
            model.to("cpu")


def _fit(
    accelerator: Accelerator,
    model: nn.Module,
    shards: "Shards | None",
    samples: Samples,
    training: Training,
    device: torch.device,
    groups: Sequence[dict[str, Any]],
    hooks: Hooks,
    teacher: nn.Module | None,
    folder: Path | None,
    report: Callable[[int, float], None] | None,
    log: SeriesLog | None,
) -> Progress:
    samples, held_out = _held_out(samples, training, report, partial(mean, accelerator), hooks)
    model = model if shards is None else shards.model
    torch.manual_seed(training.seed)  # of dropout
    projections = _projections(model, training)
    if projections is not None:
        groups = [*groups, {"params": list(projections.to(device).parameters()), "weight_decay": 0.0}]
    optimizer, scheduler = _optimizer(model, training, groups, fused=device.type == "cpu")
    prepared = model
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if shards is None:
        prepared, optimizer = _prepared(accelerator, model, optimizer, wrapped=trained > 0)
    make_step = Stepper(accelerator, prepared, optimizer, hooks, teacher, samples, training, projections)
    progress = Progress(trained_parameters=trained)
    parts: dict[str, Stateful] = {"optimizer": optimizer, "scheduler": scheduler, "hooks": hooks}
    parts |= {"held_out": held_out, "progress": progress}
    if projections is not None:
        parts["projections"] = projections
    settings = f"{training} {hooks.settings}".strip()
    states = SavedStates(accelerator, prepared, parts, folder, training.save_every, settings, shards)
    first = progress.resumed_at = states.resume()
    hooks.before_training(optimizer)
    series = Series(training, first, log)
    start = time.perf_counter() - progress.seconds
    with _training_mode(model, training, accelerator, make_step.products):
        for step in track(range(first, training.steps), training.steps - first, "training", series.status):
            if held_out.measure(model, step, device):
                logger.info("training ends at step %d: the loss of held-out samples no longer falls", step)
                break
            began = time.perf_counter()
            made = make_step(step)
            progress.losses.append(made.loss)
            scheduler.step()
            series.add(step, made, time.perf_counter() - began)
            if states.is_due(step + 1, training.steps):
                progress.seconds = time.perf_counter() - start
                states.save(step + 1)
        hooks.after_training()
        held_out.measure(model, len(progress.losses), device, last=True)
        held_out.restore_best(model)
        progress.held_out = held_out.losses
        progress.optimizer_bytes = _bytes(optimizer)
    progress.seconds = time.perf_counter() - start
    states.remove()
    return progress


def _prepared(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, *, wrapped: bool
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Gives model and optimizer to accelerate; ``wrapped``: something of the model itself is trained."""
    if not wrapped:  # only what is beside the model, whose gradients need no wrapper around it
        return model, accelerator.prepare(optimizer)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    # Accelerate leaves a forward pass behind that copies all logits to float32, and that goes on computing in mixed
    # precision when the model is evaluated later.
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    return prepared, optimizer


def _projections(model: nn.Module, training: Training) -> Projections | None:
    """The maps of hidden states that are trained beside the model, if there are any."""
    distill, config = training.distill, cast(Any, model).config
    if distill is None or not distill.project:
        return None
    numbers = distill.layers or range(config.num_hidden_layers + 1)
    return Projections(list(numbers), config.hidden_size)


def _optimizer(
    model: nn.Module, training: Training, groups: Sequence[dict[str, Any]], *, fused: bool
) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """AdamW on the model's trained parameters and further groups, with the learning rates of its steps.

    ``fused`` takes an eighth of the time on a CPU; a GPU has its own fast form by default.
    """
    parameters = [*_weight_groups(model, training), *groups]
    settings: dict[str, Any] = {"lr": training.lr, "betas": training.betas, "eps": training.eps}
    optimizer = torch.optim.AdamW(parameters, **settings, fused=fused or None)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, training.rate)


def _held_out(
    samples: Samples,
    training: Training,
    report: Callable[[int, float], None] | None,
    agreed: Callable[[float], float],
    hooks: Hooks,
) -> tuple[Samples, HeldOut]:
    """The samples to train on, and the others with what measures their loss."""
    if len(samples) <= training.eval_samples:
        raise BadInput(
            f"there is no sample to train on: {len(samples)} in all, {{at}}.eval_samples={training.eval_samples}; "
            "give a longer text, a smaller data.seqlen, or hold out fewer",
            training,
        )
    samples, others = split(samples, training.eval_samples, training.seed)
    measure = HeldOut(
        others,
        training.eval_every,
        training.patience,
        training.batch_size,
        report,
        agreed,
        hooks.measured,
        hooks.improved,
    )
    return samples, measure


@contextmanager
def _training_mode(
    model: nn.Module, training: Training, accelerator: Accelerator, inside: Callable[[], AbstractContextManager[object]]
) -> Iterator[None]:
    """Trains inside, with activations recomputed if that is asked for; evaluates afterwards.

    Args:
        model: that is trained.
        training: how.
        accelerator: lets go of what it holds at the end.
        inside: gives what forward passes are made inside, and activations recomputed.
    """
    if training.gradient_checkpointing:
        _recompute_activations(model, inside)
    model.train()
    try:
        yield
    finally:
        _keep_activations(model)
        model.eval()
        accelerator.free_memory()


def _recompute_activations(model: nn.Module, inside: Callable[[], AbstractContextManager[object]]) -> None:
    """Lets blocks keep no activations, and compute them again in the backward pass."""
    # contexts of the forward pass, which has its own already, and of the second one
    settings = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), inside())}
    getattr(model, f"{_kind(model)}_checkpointing_enable")(settings)


def _keep_activations(model: nn.Module) -> None:
    """Lets blocks keep their activations again, if they did not."""
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        getattr(model, f"{_kind(model)}_checkpointing_disable")()


def _kind(model: nn.Module) -> str:
    """What the methods are called that switch this; transformers renames them."""
    return "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"


def _bytes(optimizer: torch.optim.Optimizer) -> int:
    """What an optimizer remembers."""
    states = (value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))
    return sum(value.numel() * value.element_size() for value in states)


def _weight_groups(model: nn.Module, training: Training) -> Iterable[dict[str, Any]]:
    """Matrices decay, all else does not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    yield {"params": [p for p in trained if p.dim() >= 2], "weight_decay": training.weight_decay}
    yield {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0}


@contextmanager
def trainable_head(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Lets the parameters of some modules alone take gradients for a while: of an encoder's head."""
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(trainable_weights(module))
        yield


@contextmanager
def trainable_weights(model: nn.Module) -> Iterator[None]:
    """Lets all parameters take gradients for a while."""
    model.requires_grad_(True)
    try:
        yield
    finally:
        model.requires_grad_(False)
        model.zero_grad(set_to_none=True)
