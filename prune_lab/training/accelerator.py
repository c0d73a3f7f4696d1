"""Accelerate as the training loop needs it: one accelerator for each training, which leaves weights whole."""

import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import str_to_bool
from torch import nn

from prune_lab.errors import BadInput
from prune_lab.training.settings import Training
from prune_lab.utils.processes import processes

_WHOLE_WEIGHTS = ("NO", "MULTI_CPU", "MULTI_GPU")  # accelerate's names of what leaves every process all weights


def accelerator_for(training: Training, device: torch.device) -> Accelerator:
    """Makes the accelerator of a training.

    Args:
        training: how.
        device: where a process that is alone trains; one of several trains on its own.

    Raises:
        BadInput: accelerate cannot read its environment or is configured to split weights among processes, or a process
            would have no sample.
    """
    _check_switches()
    alone, cpu = processes().count == 1, device.type == "cpu"
    AcceleratorState._reset_state(alone)  # a second training in one process may have another precision or device
    try:
        if alone:
            PartialState(cpu=cpu).device = device  # left to itself, accelerate takes the first GPU
        precision = "no" if training.fsdp else training.precision  # FSDP has mixed precision of its own
        accelerator = Accelerator(mixed_precision=precision, cpu=cpu)
    except ValueError as error:
        if "invalid truth value" not in str(error):
            raise
        raise _no_switch(error, "ACCELERATE_") from error
    if accelerator.distributed_type.value not in _WHOLE_WEIGHTS:
        raise BadInput(
            f"accelerate is configured for {accelerator.distributed_type.value}, which splits weights among processes "
            "and knows nothing of zeros that stay; use {at}.fsdp=true without it (torchrun, or accelerate launch "
            "--multi_gpu), or processes with a model each",
            training,
        )
    if training.batch_size // training.gradient_accumulation_steps < accelerator.num_processes:
        raise BadInput(
            f"{{at}}.batch_size={training.batch_size} in {training.gradient_accumulation_steps} micro-batches "
            f"leaves nothing for some of {accelerator.num_processes} processes; raise {{at}}.batch_size or lower "
            "{at}.gradient_accumulation_steps",
            training,
        )
    return accelerator


def _check_switches() -> None:
    """Looks at the switches first: accelerate reads some of them only when it trains."""
    for name, value in os.environ.items():
        if name.startswith("ACCELERATE_USE_"):
            try:
                str_to_bool(value)
            except ValueError as error:
                raise _no_switch(error, name) from error


def _no_switch(error: Exception, start: str) -> BadInput:
    """Says which variables may be meant: those whose names begin so."""
    names = ", ".join(f"{name}={value[:80]}" for name, value in os.environ.items() if name.startswith(start))
    return BadInput(
        f"accelerate cannot read its variables of the environment ({names}): {error}; allowed for a switch: true, "
        "false; unset the others"
    )


def mean(accelerator: Accelerator, value: float) -> float:
    """The mean of a number over processes, the same to the bit in all of them."""
    if accelerator.num_processes == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=accelerator.device)
    return float(accelerator.reduce(total, reduction="mean"))


def average(accelerator: Accelerator, optimizer: torch.optim.Optimizer, model: nn.Module, loss: float) -> float:
    """Averages over processes the gradients of parameters outside the model, such as scores, and the loss.

    Gradients of the model itself are averaged in the backward pass.

    Returns:
        The mean loss.
    """
    own = {id(parameter) for parameter in model.parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in own and parameter.grad is not None:
                parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")
    return mean(accelerator, loss)
