"""Runs a 2:4 model on the sparse tensor cores of a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from prune_lab.models.experts import ExpertLinear
from prune_lab.models.model import PrunableModel


def why_not(model: PrunableModel, device: torch.device) -> str | None:
    """Why a model cannot run on 2:4 kernels; None if nothing is known against it."""
    if device.type != "cuda":
        return "not timed: 2:4 kernels need a GPU"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "not timed: 2:4 kernels need a GPU of compute capability 8.0 or more"
    for linear in model.linears:
        if isinstance(linear, ExpertLinear):
            return f"not timed: {linear.name} is stored with those of other experts, which 2:4 kernels do not multiply"
        if not isinstance(linear.module, nn.Linear):
            return f"not timed: {linear.name} is stored with inputs first, which 2:4 kernels do not multiply"
        if not is_two_of_four(linear.weight):
            return f"not timed: {linear.name} is not 2:4"
    return None


def is_two_of_four(weight: Tensor) -> bool:
    """Whether of every four consecutive inputs of ``(out, in)`` at most two are not zero."""
    rows, columns = weight.shape
    return columns % 4 == 0 and bool(((weight != 0).view(rows, -1, 4).sum(-1) <= 2).all())


@contextmanager
def on_sparse_kernels(model: PrunableModel) -> Iterator[None]:
    """Stores all linear layers, which are on a GPU, for 2:4 kernels, and as they were afterwards.

    Raises:
        RuntimeError: PyTorch has no kernel for their shapes or type.
    """
    dense = {linear.module: linear.module.weight for linear in model.linears}
    try:
        for layer, weight in dense.items():
            layer.weight = nn.Parameter(torch.sparse.to_sparse_semi_structured(weight.detach()), requires_grad=False)
        yield
    finally:
        for layer, weight in dense.items():
            layer.weight = weight
