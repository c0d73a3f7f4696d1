"""Lets a half-precision block compute in float32 for a while, where the processor is slow at half precision.

Statistics are accumulated in float32 anyway, so passes that only collect them run on widened weights there. All other
passes round each product to the type of the model (`prune_lab.utils.products`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prune_lab.utils.products import is_slow_at

_HALF = (torch.bfloat16, torch.float16)


def products_for(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What products of a model of type ``dtype`` are made in while it is trained: bfloat16 where that is fast.

    Weights, gradients and what is between the products are float32 in any case. Float16 cannot hold gradients of a
    mean over tokens and width.
    """
    return dtype if dtype == torch.bfloat16 and not is_slow_at(dtype, device) else torch.float32


@contextmanager
def widened(module: nn.Module) -> Iterator[None]:
    """Half-precision parameters and buffers of ``module`` are float32 inside; afterwards they are what they were."""
    kept = [(tensor, tensor.data) for tensor in (*module.parameters(), *module.buffers()) if tensor.dtype in _HALF]
    try:
        for tensor, data in kept:
            tensor.data = data.float()
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data


def widen(value: Any) -> Any:
    """``value`` with half-precision tensors in it, also in tuples and dicts, in float32."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in _HALF else value
    if isinstance(value, tuple):
        return tuple(widen(item) for item in value)
    if isinstance(value, dict):
        return {key: widen(item) for key, item in value.items()}
    return value
