"""The dense model beside the pruned one: what a block was before it was written to, and how far inputs have moved."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.held_out import HeldOut

Values = tuple[Tensor, Tensor | None]
"""The weight ``(out, in)`` of a linear layer, and its bias ``(out,)``, if it has one."""


class DenseValues:
    """What linear layers of a block were before anything was written to them."""

    def __init__(self) -> None:
        self._kept: dict[PrunableLinear, Values] = {}

    def __bool__(self) -> bool:
        """Whether anything was written."""
        return bool(self._kept)

    def keep(self, *linears: PrunableLinear) -> None:
        """Keeps a copy of the values of linear layers; a later call for the same one changes nothing."""
        self._kept |= {linear: _values(linear) for linear in linears if linear not in self._kept}

    def put_back(self) -> None:
        """Gives the linear layers the values that are kept, for good."""
        _copy(self._kept)
        self._kept.clear()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the linear layers have their dense values; afterwards what they had before."""
        pruned = {linear: _values(linear) for linear in self._kept}
        _copy(self._kept)
        try:
            yield
        finally:
            _copy(pruned)


class InputShift:
    """How far the inputs of a linear layer have moved from those in the dense model: ``sum (x - x') x'^T``.

    ``x`` is an input in the dense model, and ``x'`` the one that the layer reads now, for the same token. Accumulates
    in float32; peak memory on the device: ``in^2`` floats, and two batches of inputs in float32.

    Args:
        held: tokens that are left out.
        calibration: says in which batches the tokens come.
    """

    sums: ClassVar = ("_tokens", "_sum")

    def __init__(self, held: HeldOut, calibration: Calibration):
        self._tokens = 0
        self._sum: Tensor | None = None
        self._fitted = (held.fitted[batch].flatten() for batch in calibration.batches())

    def update(self, dense: Tensor, inputs: Tensor) -> None:
        """Adds the next batch: the dense model's inputs, and those of the layer, ``(tokens, in)`` each."""
        fitted = next(self._fitted)
        if not bool(fitted.any()):
            return
        if not bool(fitted.all()):
            fitted = fitted.to(inputs.device)
            dense, inputs = dense[fitted], inputs[fitted]
        x = inputs.float()
        moved = dense.float() - x
        if self._sum is None:
            self._sum = torch.zeros(x.shape[1], x.shape[1], device=x.device)
        self._sum.addmm_(moved.T, x)
        self._tokens += len(x)

    def release(self) -> Tensor:
        """Gives away the mean over tokens of ``(x - x') x'^T``, ``(in, in)`` float32; it is empty afterwards."""
        assert self._sum is not None, "no batch was seen"
        total, self._sum = self._sum, None
        return total.div_(self._tokens)


def _values(linear: PrunableLinear) -> Values:
    return linear.weight.clone(), None if linear.bias is None else linear.bias.clone()


@torch.no_grad()
def _copy(values: dict[PrunableLinear, Values]) -> None:
    for linear, (weight, bias) in values.items():
        linear.weight.copy_(weight)
        if linear.bias is not None and bias is not None:
            linear.bias.copy_(bias)
