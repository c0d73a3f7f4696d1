"""Notes in which types matrices are multiplied."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class ProductTypes(TorchDispatchMode):
    """The types of all products inside, as PyTorch's dispatch sees them.

    Args:
        least: rows and columns of the matrices that count, at least.
    """

    def __init__(self, least: int = 1):
        super().__init__()
        self.least = least
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [each for each in args if isinstance(each, torch.Tensor)]
        large = all(min(each.shape) >= self.least for each in tensors if each.ndim == 2)
        if large and ("mm" in func.__name__ or "linear" in func.__name__):
            self.seen |= {each.dtype for each in tensors}
        return func(*args, **(kwargs or {}))
