"""The part that units have in one weight matrix."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prune_lab.models.view import PrunableLinear


@dataclass(frozen=True, eq=False)
class Member:
    """A weight matrix in which units have their parts.

    Attributes:
        linear: the matrix.
        dim: of ``(out, in)``, along which units lie; None: every weight is a unit.
        owner: ``(size of dim,)`` int64, the unit of each row or column, -1: of none, so that it stays; None: each is
            one of its own.
    """

    linear: PrunableLinear
    dim: int | None
    owner: Tensor | None = None

    def spread(self, values: Tensor) -> Tensor:
        """Values of units, one for each row or column; 1 for those of no unit."""
        if self.owner is None:
            return values
        return torch.cat([values, values.new_ones(1)])[self.owner.to(values.device)]  # -1 is the last

    def broadcast(self, values: Tensor) -> Tensor:
        """Values of units in a shape that multiplies the weight as it is stored."""
        if self.dim is None:
            return self.linear.seen(values)
        spread = self.spread(values)
        return spread[:, None] if self.linear.stored_dim(self.dim) == 0 else spread

    def sum(self, weight: Tensor, count: int) -> Tensor:
        """The sum over each unit's part of a ``(out, in)`` tensor: ``(count,)``."""
        assert self.dim is not None
        return self.gather(weight.sum(1 - self.dim), count)

    def gather(self, parts: Tensor, count: int) -> Tensor:
        """Adds up values of rows or columns by unit: ``(count,)``."""
        if self.owner is None:
            return parts
        owner = self.owner.to(parts.device) % (count + 1)  # of no unit: one more, which is left out
        return parts.new_zeros(count + 1).index_add_(0, owner, parts)[:count]

    @property
    def size(self) -> int:
        """How many weights and biases belong to units."""
        rows, columns = self.linear.shape
        if self.dim is None:
            return rows * columns
        lines = (rows, columns)[self.dim] if self.owner is None else int((self.owner >= 0).count_nonzero())
        return lines * ((rows, columns)[1 - self.dim] + (self.bias is not None))

    @property
    def bias(self) -> Tensor | None:
        """The bias that belongs to the rows, if units are rows."""
        return self.linear.bias if self.dim == 0 else None

    @torch.no_grad()
    def apply(self, keep: Tensor) -> None:
        """Sets the other units' parts of the weight and its bias to zero; ``keep`` has an entry for each unit."""
        keep, weight = keep.to(self.linear.weight.device), self.linear.weight
        if self.dim is None:
            weight.mul_(keep)
        else:
            weight.mul_(self.spread(keep)[:, None] if self.dim == 0 else self.spread(keep))
        if self.bias is not None:
            self.bias.mul_(self.spread(keep))
