"""Whether numbers are numbers."""

import math

from torch import Tensor


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor of any type has neither NaN nor infinite values.

    By its least and greatest value, where NaN takes part: that reads the tensor once and writes nothing.
    """
    if tensor.dim() == 2 and tensor.T.is_contiguous():  # a weight that is stored the other way round: no copy of it
        tensor = tensor.T
    return tensor.numel() == 0 or all(bool(value.isfinite()) for value in tensor.aminmax())


def or_infinite(loss: float) -> float:
    """A loss by which choices are compared: NaN is worse than all others."""
    return math.inf if math.isnan(loss) else loss
