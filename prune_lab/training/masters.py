"""Float32 weights for the time of a training, of a model that is in half precision.

The steps of an optimizer are small beside the weights: bfloat16 keeps 8 binary digits, so that a step below 1/512 of a
weight is lost, and in float16 gradients and the optimizer's second moments underflow.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from prune_lab.errors import BadSetting
from prune_lab.training.settings import Training
from prune_lab.utils.processes import processes


def check_types(dtype: torch.dtype, training: Training, device: torch.device) -> None:
    """Checks what the model's type and the device allow, before anything is done.

    Raises:
        BadSetting: float16 weights would be trained as they are, or in mixed float16 without a GPU.
    """
    if dtype == torch.float16 and not training.master_weights:
        raise BadSetting(
            training,
            "master_weights",
            "trains float16 weights as they are, whose gradients underflow; use {at}.master_weights=true, or "
            "model.dtype=bfloat16",
        )
    if training.precision == "fp16" and device.type == "cpu":
        raise BadSetting(training, "precision", "needs a GPU; use {at}.precision=no or bf16, or device=cuda")


def in_float32(model: nn.Module) -> list[nn.Parameter]:
    """The parameters in half precision that are float32 while a model is trained.

    Those that are trained; and all of a model that has float16 weights, as gradients on their way through those would
    underflow.
    """
    parameters = list(model.parameters())
    float16 = any(parameter.dtype == torch.float16 for parameter in parameters)
    return [
        parameter
        for parameter in parameters
        if parameter.dtype in (torch.float16, torch.bfloat16) and (float16 or parameter.requires_grad)
    ]


@contextmanager
def widened(model: nn.Module, *, wanted: bool) -> Iterator[None]:
    """Holds weights in float32 inside, and casts them back to their types afterwards; zeros stay zero.

    The parameters stay the same objects.

    Args:
        model: whatever its type.
        wanted: false: does nothing.
    """
    types = {parameter: parameter.dtype for parameter in in_float32(model)} if wanted else {}
    for parameter in types:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in types.items():
            parameter.grad = None
            parameter.data = parameter.data.to(dtype)


def told_types(dtype: torch.dtype, training: Training) -> str:
    """Says in what type the weights were trained, and in how many parts, for the protocol."""
    name = str(dtype).removeprefix("torch.")
    widened = ", float32 while they are trained" if dtype.itemsize < 4 and training.master_weights else ""
    return f"{name}{widened}" + (f", divided among {processes().count} processes" if training.fsdp else "")
