"""Gradients of the loss of a model, one sample after the other, without any training."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from prune_lab.data.samples import Samples
from prune_lab.models.model import PrunableModel
from prune_lab.training.losses import loss_of, outputs
from prune_lab.training.masters import widened


def sample_gradients(
    model: PrunableModel, parameters: Sequence[Tensor], samples: Samples, device: torch.device
) -> Iterator[float]:
    """Yields the loss of each sample in nats; until the next is asked for, ``grad`` of the parameters is its gradient.

    Weights in float16 are float32 meanwhile, see `ranged`.

    Args:
        model: on ``device`` meanwhile, all of it.
        parameters: of the model.
        samples: on the host.
        device: where.
    """
    with model.placed(device, whole=True) as hf, ranged(hf), torch.enable_grad():
        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            for row in torch.arange(len(samples), device="cpu").split(1):
                batch = samples.batch(row, device)
                loss = loss_of(outputs(hf, batch).logits, batch)
                loss.backward()
                yield loss.item()
                for parameter in parameters:
                    parameter.grad = None
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)
                parameter.grad = None


def ranged(hf: nn.Module) -> AbstractContextManager[None]:
    """Holds float16 weights in float32 inside, as gradients would underflow on their way; others as they are."""
    return widened(hf, wanted=any(parameter.dtype == torch.float16 for parameter in hf.parameters()))


def gradient_of(parameter: Tensor) -> Tensor:
    """The gradient of a parameter after a backward pass, of its shape."""
    assert parameter.grad is not None, "nothing was computed with it"
    return parameter.grad
