from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture
def layer() -> Callable[..., tuple[Tensor, Tensor]]:
    """Makes a weight ``(out, in)`` and its inputs ``(tokens, in)``, as correlated and uneven as activations are."""

    def make(out: int = 10, inputs: int = 24, tokens: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        mixing = torch.randn(inputs, inputs, generator=generator) / inputs**0.5 + torch.eye(inputs)
        sizes = torch.exp(torch.randn(inputs, generator=generator))
        x = (torch.randn(tokens, inputs, generator=generator) @ mixing + 0.5) * sizes
        return torch.randn(out, inputs, generator=generator), x

    return make
