"""A feed-forward network as tensors: its weights, its dense inputs and outputs, and what is accumulated over them.

Inputs and outputs are on the host, and one chunk of tokens at a time on the device; or all of them are there. Weights
are float32, on the device.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prune_lab.pruning.solvers.auxiliary import Activation
from prune_lab.pruning.solvers.gram import accumulate_upper, mirror_upper


@dataclass(frozen=True)
class FeedForwardWeights:
    """``down act(up x + b)``, or with a gate ``down (act(gate x + c) * (up x + b))``."""

    up: Tensor  # (hidden, in)
    down: Tensor  # (out, hidden)
    gate: Tensor | None = None  # (hidden, in)


@dataclass(frozen=True)
class HiddenMoments:
    """What the error of any down-projection follows from, for fixed weights before it."""

    hidden: Tensor  # (hidden, hidden): sum of h h^T
    cross: Tensor  # (out, hidden): sum of y h^T
    outputs: float  # sum of |y|^2

    def error(self, down: Tensor) -> float:
        """``sum |y - down h|^2 / sum |y|^2``, or the numerator alone where y is zero."""
        explained = 2 * (self.cross * down).sum(dtype=torch.float64)
        error = float(self.outputs - explained + ((down @ self.hidden) * down).sum(dtype=torch.float64))
        return error / (self.outputs or 1.0)


@dataclass(frozen=True)
class FeedForward:
    """A network with its calibration data.

    Args:
        dense: the weights before pruning.
        up_bias: ``(hidden,)`` or ``None``.
        gate_bias: ``(hidden,)`` or ``None``.
        activation: elementwise.
        inputs: ``(tokens, in)``, on the host or the device, any float type.
        outputs: ``(tokens, out)`` of the dense network without the last bias, where the inputs are; made by
            `with_outputs`.
        chunk: tokens on the device at once.
        products: what inputs and weights are multiplied in, float32 or bfloat16; everything else is float32.
    """

    dense: FeedForwardWeights
    up_bias: Tensor | None
    gate_bias: Tensor | None
    activation: Activation
    inputs: Tensor
    outputs: Tensor
    chunk: int
    products: torch.dtype = torch.float32

    def with_outputs(self) -> "FeedForward":
        """Itself, with the outputs of the dense weights in the type of the inputs."""
        outputs = self.inputs.new_empty(len(self.inputs), len(self.dense.down))
        for rows in self.chunks():
            outputs[rows] = self.output(self.x(rows), self.dense).to(outputs.dtype)
        return replace(self, outputs=outputs)

    def sample(self, tokens: int | None) -> "FeedForward":
        """Itself on evenly spaced tokens: at least so many, or all where there are fewer, or for null.

        The network must have its outputs.
        """
        stride = max(1, len(self.inputs) // tokens) if tokens else 1
        return self if stride == 1 else self.only(torch.arange(0, len(self.inputs), stride))

    def only(self, rows: Tensor) -> "FeedForward":
        """Itself on some of its tokens: their numbers, or which they are, ``(tokens,)`` bool."""
        return replace(self, inputs=_at(self.inputs, rows), outputs=_at(self.outputs, rows))

    def gram(self) -> Tensor:
        """``sum x x^T``, ``(in, in)`` float32."""
        width = self.inputs.shape[1]
        gram = torch.zeros(width, width, device=self.dense.up.device)
        for rows in self.chunks():
            accumulate_upper(gram, self.inputs[rows].to(gram.device))
        return mirror_upper(gram)

    def chunks(self) -> Iterator[slice]:
        """The tokens, a chunk at a time."""
        for start in range(0, len(self.inputs), self.chunk):
            yield slice(start, start + self.chunk)

    def x(self, rows: slice | Tensor) -> Tensor:
        """Inputs on the device, ``(rows, in)`` float32."""
        return _at(self.inputs, rows).to(self.dense.up.device, torch.float32)

    def y(self, rows: slice | Tensor) -> Tensor:
        """Outputs on the device, ``(rows, out)`` float32."""
        return _at(self.outputs, rows).to(self.dense.up.device, torch.float32)

    def before_activation(self, x: Tensor, weights: FeedForwardWeights) -> tuple[Tensor, Tensor | None]:
        """``z`` and, with a gate, ``s``: ``(rows, hidden)`` each."""
        z = self._linear(x, weights.up, self.up_bias)
        return z, None if weights.gate is None else self._linear(x, weights.gate, self.gate_bias)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.products == torch.float32:
            return torch.nn.functional.linear(x, weight, bias)
        y = torch.nn.functional.linear(x.to(self.products), weight.to(self.products)).float()
        return y if bias is None else y + bias

    def through(self, z: Tensor, s: Tensor | None) -> Tensor:
        """``h``, ``(rows, hidden)``, of what is before the activation."""
        return self.activation(z) if s is None else self.activation(s) * z

    def hidden(self, x: Tensor, weights: FeedForwardWeights) -> Tensor:
        """``h`` of inputs ``(rows, in)``."""
        return self.through(*self.before_activation(x, weights))

    def output(self, x: Tensor, weights: FeedForwardWeights) -> Tensor:
        """``down h`` of inputs ``(rows, in)``."""
        return self._linear(self.hidden(x, weights), weights.down)

    def moments(self, weights: FeedForwardWeights) -> HiddenMoments:
        """What reaches the down-projection, for the weights before it."""
        device, (out_features, width) = self.dense.up.device, self.dense.down.shape
        hidden, cross = torch.zeros(width, width, device=device), torch.zeros(out_features, width, device=device)
        outputs = torch.zeros((), dtype=torch.float64, device=device)
        for rows in self.chunks():
            h, y = self.hidden(self.x(rows), weights), self.y(rows)
            accumulate_upper(hidden, h)
            cross.addmm_(y.T, h)
            outputs += y.square().sum(dtype=torch.float64)
        return HiddenMoments(mirror_upper(hidden), cross, float(outputs))

    def error(self, weights: FeedForwardWeights) -> float:
        """``sum |y - f(x)|^2 / sum |y|^2``, or the numerator alone where y is zero."""
        error = outputs = 0.0
        for rows in self.chunks():
            y = self.y(rows)
            error += float((y - self.output(self.x(rows), weights)).square().sum(dtype=torch.float64))
            outputs += float(y.square().sum(dtype=torch.float64))
        return error / (outputs or 1.0)


def _at(tensor: Tensor, rows: slice | Tensor) -> Tensor:
    """Some rows; indices on the host would be waited for at each use of a tensor on a GPU."""
    return tensor[rows if isinstance(rows, slice) else rows.to(tensor.device)]
