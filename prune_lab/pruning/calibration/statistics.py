"""What is accumulated over the inputs of a linear layer: Hessian, norm, or the inputs themselves.

Everything accumulates in float32, on the device where the inputs arrive, unless it says otherwise.
"""

from collections.abc import Callable
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from prune_lab.pruning.solvers.gram import accumulate_upper, mirror_upper


class Statistic(Protocol):
    """Something accumulated over the inputs of a linear layer.

    A class that names in ``sums`` those of its attributes that are sums over tokens (numbers, tensors, and statistics
    in it that do so themselves) can be collected by several processes, of a share of the samples each; see
    `prune_lab.pruning.calibration.shared`. An attribute may be ``None`` as long as no token was seen.
    """

    def update(self, inputs: Tensor) -> None:
        """Takes one batch of inputs, ``(tokens, in)``, in the type of the model."""


def update_at(statistic: Statistic, inputs: Tensor, tokens: Tensor | None) -> int:
    """Shows a statistic some tokens of a batch.

    Args:
        statistic: of any kind; one that has a method ``update_at`` is shown every batch, also an empty one.
        inputs: ``(tokens, in)``.
        tokens: which of the batch they are, ``(tokens,)`` int64; ``None``: all of it.

    Returns:
        How many it took.
    """
    if tokens is not None and hasattr(statistic, "update_at"):
        taken: int = statistic.update_at(inputs, tokens)
        return taken
    if len(inputs):
        statistic.update(inputs)
    return len(inputs)


class Nothing:
    """A statistic of nothing: for a pass that only takes error samples."""

    sums: ClassVar = ()

    def update(self, inputs: Tensor) -> None:
        """Does nothing."""


class Hessian:
    """Second moment of a linear layer's inputs, ``1/T sum x x^T``.

    Only the upper triangle is computed. Peak memory on the device: ``in^2`` floats, and one batch of inputs in float32.
    """

    sums: ClassVar = ("tokens", "_sum")

    def __init__(self) -> None:
        self.tokens = 0
        self._sum: Tensor | None = None

    def update(self, inputs: Tensor) -> None:
        """Adds a batch ``(tokens, in)``; accumulates in float32."""
        tokens, width = inputs.shape
        if self._sum is None:
            self._sum = torch.zeros(width, width, device=inputs.device)
        accumulate_upper(self._sum, inputs)
        self.tokens += tokens

    @property
    def value(self) -> Tensor:
        """``(in, in)`` float32, symmetric."""
        assert self._sum is not None, "no batch was seen"
        return mirror_upper(self._sum) / self.tokens

    def release(self) -> Tensor:
        """Gives away the sum ``sum x x^T`` itself, ``(in, in)`` float32; only its upper triangle means anything.

        For solvers that need no scale and no second copy; the statistic is empty afterwards.
        """
        assert self._sum is not None, "no batch was seen"
        upper, self._sum = self._sum, None
        return upper


class WithHessian:
    """The Hessian of a layer's inputs, and the statistic of a method; one object where they are the same.

    Args:
        statistic: makes an empty one of the method's.
    """

    sums: ClassVar = ("hessian", "own")

    def __init__(self, statistic: Callable[[], Statistic]):
        self.hessian = Hessian()
        self.own = self.hessian if statistic is Hessian else statistic()

    def update(self, inputs: Tensor) -> None:
        """Adds a batch ``(tokens, in)``."""
        self.hessian.update(inputs)
        if self.own is not self.hessian:
            self.own.update(inputs)


class InputNorm:
    """L2 norm of each input over the tokens seen."""

    sums: ClassVar = ("_squares",)

    def __init__(self) -> None:
        self._squares: Tensor | None = None

    def update(self, inputs: Tensor) -> None:
        """Adds a batch ``(tokens, in)``; accumulates in float32."""
        x = inputs.float()
        squares = x.square() if x is inputs else x.square_()  # a copy may be overwritten
        squares = squares.sum(0)  # vector_norm over dim 0 takes eight times as long
        self._squares = squares if self._squares is None else self._squares + squares

    @property
    def value(self) -> Tensor:
        """``(in,)`` float32."""
        assert self._squares is not None, "no batch was seen"
        return self._squares.sqrt()


class Moments:
    """Mean and variance of each input over the tokens seen, from sums in float64."""

    sums: ClassVar = ("tokens", "_sum", "_squares")

    def __init__(self) -> None:
        self.tokens = 0
        self._sum: Tensor | None = None
        self._squares: Tensor | None = None

    def update(self, inputs: Tensor) -> None:
        """Adds a batch ``(tokens, in)``."""
        x = inputs.double()
        total, squares = x.sum(0), x.square_().sum(0) if x is not inputs else x.square().sum(0)
        self._sum = total if self._sum is None else self._sum + total
        self._squares = squares if self._squares is None else self._squares + squares
        self.tokens += len(inputs)

    @property
    def mean(self) -> Tensor:
        """``(in,)`` float64."""
        assert self._sum is not None, "no batch was seen"
        return self._sum / self.tokens

    @property
    def variance(self) -> Tensor:
        """``(in,)`` float64, with ``T - 1`` in the denominator."""
        assert self._squares is not None, "no batch was seen"
        return ((self._squares - self.tokens * self.mean.square()) / max(1, self.tokens - 1)).clamp_min_(0)


class Covariance:
    """Second moment and mean of a linear layer's inputs, for weights that come with a free bias."""

    sums: ClassVar = ("hessian", "_sum")

    def __init__(self) -> None:
        self.hessian = Hessian()
        self._sum: Tensor | None = None

    def update(self, inputs: Tensor) -> None:
        """Adds a batch ``(tokens, in)``."""
        total = inputs.sum(0, dtype=torch.float64)
        self._sum = total if self._sum is None else self._sum + total
        self.hessian.update(inputs)

    @property
    def mean(self) -> Tensor:
        """``(in,)`` float64."""
        assert self._sum is not None, "no batch was seen"
        return self._sum / self.hessian.tokens

    @property
    def value(self) -> Tensor:
        """``1/T sum (x - mean) (x - mean)^T``, ``(in, in)`` float64."""
        return self.hessian.value.double().addr_(self.mean, self.mean, alpha=-1)


class SequenceMeans:
    """The L2 norm over sequences of each input's mean absolute value in a sequence.

    Args:
        seqlen: tokens of a sequence; batches hold whole ones.
    """

    sums: ClassVar = ("_squares",)

    def __init__(self, seqlen: int):
        self._seqlen = seqlen
        self._squares: Tensor | None = None

    def update(self, inputs: Tensor) -> None:
        """Adds a batch ``(sequences * seqlen, in)``; accumulates in float32."""
        means = inputs.float().abs().unflatten(0, (-1, self._seqlen)).mean(1)
        squares = means.square_().sum(0)
        self._squares = squares if self._squares is None else self._squares + squares

    @property
    def value(self) -> Tensor:
        """``(in,)`` float32."""
        assert self._squares is not None, "no batch was seen"
        return self._squares.sqrt()


class Record:
    """The inputs themselves, on the host, in the type of the model.

    Args:
        dtype: what they are kept in; passes may arrive in float32 where the model is in half precision.
    """

    def __init__(self, dtype: torch.dtype):
        self._dtype = dtype
        self._batches: list[Tensor] = []

    def update(self, inputs: Tensor) -> None:
        """Adds a batch ``(tokens, in)``."""
        self._batches.append(inputs.to("cpu", self._dtype, copy=True))

    def release(self) -> Tensor:
        """All inputs, ``(tokens, in)``; the record is empty afterwards."""
        batches, self._batches = self._batches, []
        return torch.cat(batches)
