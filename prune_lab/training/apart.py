"""Gradients of one loss that are kept out of the way while those of another add up."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Apart:
    """Inside, gradients add up here, and not in the parameters, which keep what they have.

    Args:
        parameters: whose gradients.
    """

    def __init__(self, parameters: Sequence[Tensor]):
        self._parameters = parameters
        self._gradients: list[Tensor | None] = [None] * len(parameters)

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._swap()

    @torch.no_grad()
    def join(self) -> None:
        """Adds what is here to the gradients of the parameters."""
        for number, (parameter, gradient) in enumerate(zip(self._parameters, self._gradients, strict=True)):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
            self._gradients[number] = None

    def _swap(self) -> None:
        for number, parameter in enumerate(self._parameters):
            parameter.grad, self._gradients[number] = self._gradients[number], parameter.grad
