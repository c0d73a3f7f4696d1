"""The calibration set, and the order in which blocks see it."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from prune_lab.utils.checks import check_choice


@dataclass
class Calibration:
    """The calibration set as a method gets it.

    Args:
        tokens: ``(samples, seqlen)`` int64, on the host.
        batch_size: samples in one forward pass; by default about 1,024 tokens on a CPU and 8,192 on an accelerator.
        device: where blocks and statistics live while they are worked on.
        propagate: what the next block sees: the outputs of this one ``pruned``, or as it was ``dense``.
        sequential: when inputs are collected: once a ``block``, or again for every ``layer`` (or linear layers that
            read the same tensor), after the linear layers before it are pruned ("true sequential").
        boundary: a sample before which a batch ends, as those from there on are used apart from the others.

    Raises:
        BadInput: an order is unknown.
    """

    tokens: Tensor
    batch_size: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    propagate: str = "pruned"
    sequential: str = "block"
    boundary: int | None = None

    def __post_init__(self) -> None:
        check_order(self)

    def first_batch(self) -> "Calibration":
        """Returns the first batch alone: for methods that use data only to measure their error."""
        size = self.batch_size or self._default_batch()
        return replace(self, tokens=self.tokens[:size], batch_size=size, boundary=None)

    def batches(self) -> list[slice]:
        """Lists which samples make each batch."""
        size = self.batch_size or self._default_batch()
        samples = len(self.tokens)
        ends = (self.boundary, samples) if self.boundary else (samples,)
        return [
            slice(start, min(start + size, end))
            for first, end in zip((0, *ends), ends, strict=False)
            for start in range(first, end, size)
        ]

    def _default_batch(self) -> int:
        return max(1, (1024 if self.device.type == "cpu" else 8192) // self.tokens.shape[1])


def check_order(owner: object) -> None:
    """Checks the fields ``propagate`` and ``sequential``, the order of work.

    Raises:
        BadSetting: one is unknown.
    """
    check_choice(owner, "propagate", ("pruned", "dense"))
    check_choice(owner, "sequential", ("block", "layer"))
