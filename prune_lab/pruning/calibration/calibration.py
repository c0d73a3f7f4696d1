"""The calibration set, and the order in which blocks see it."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from prune_lab.data.samples import Samples
from prune_lab.errors import BadSetting
from prune_lab.utils.checks import check_choice, check_number
from prune_lab.utils.collectives import count, own_share


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
        dense_targets: share, in [0, 1], of the dense model's own outputs in what layers are fitted to; the rest are the
            outputs of the dense weight on pruned inputs. Needs ``sequential=layer``.
        boundary: a sample before which a batch ends, as those from there on are used apart from the others.
        share: which samples of the whole set these are, in one of several processes that have a share each; ``None``:
            they are the whole set.
        samples: of the whole set, where these are a share of it.
        real: ``(samples, seqlen)`` bool, false for padding, which no statistic sees; ``None``: nothing is padded.
        types: ``(samples, seqlen)`` int64, which of an encoder's two texts a token is of; ``None``: it has one.
        labels: ``(samples,)``, what an encoder is to say of each; ``None``: tokens are predicted.

    Raises:
        BadInput: an order is unknown.
    """

    tokens: Tensor
    batch_size: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    propagate: str = "pruned"
    sequential: str = "block"
    dense_targets: float = 0.0
    boundary: int | None = None
    share: slice | None = None
    samples: int | None = None
    real: Tensor | None = None
    types: Tensor | None = None
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        check_order(self)

    def divided(self) -> "Calibration":
        """Returns this process' share, of the samples in order; all of them where there is not one for each process.

        What is found on a share must be added up over the processes (`prune_lab.utils.collectives`).
        """
        if count() == 1 or len(self.tokens) < count():
            return self
        share = own_share(len(self.tokens))
        return replace(self._of(share), share=share, samples=len(self.tokens))

    @property
    def whole_shape(self) -> tuple[int, int]:
        """``(samples, seqlen)`` of the whole set."""
        samples, seqlen = self.tokens.shape
        return self.samples or samples, seqlen

    def first_batch(self) -> "Calibration":
        """Returns the first batch alone: for methods that use data only to measure their error."""
        size = self.batch_size or self._default_batch()
        return replace(self._of(slice(size)), batch_size=size, boundary=None)

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

    def first(self, count: int, seqlen: int | None) -> Samples:
        """Returns the first samples with what a loss takes of them.

        Args:
            count: how many.
            seqlen: tokens of each, the first ones; ``None``: all, as of texts that have labels in any case.
        """
        if self.labels is None:
            return Samples(self.tokens[:count, :seqlen])
        lengths = None if self.real is None else self.real[:count].sum(1)
        types = None if self.types is None else self.types[:count]
        return Samples(self.tokens[:count], lengths, labels=self.labels[:count], types=types)

    def inputs(self, batch: slice) -> dict[str, Tensor]:
        """Returns the arguments of the model for a batch, on the device."""
        given = {"input_ids": self.tokens, "attention_mask": self.real, "token_type_ids": self.types}
        return {name: each[batch].long().to(self.device) for name, each in given.items() if each is not None}

    def real_rows(self, batch: slice, states: Tensor) -> Tensor:
        """Returns what is of tokens that are no padding: ``(tokens, width)``.

        Args:
            batch: which samples.
            states: of them, ``(samples, seqlen, width)``.
        """
        return states.flatten(0, -2) if self.real is None else states[self.real[batch].to(states.device)]

    def _of(self, samples: slice) -> "Calibration":
        parts = (self.real, self.types, self.labels)
        real, types, labels = (each if each is None else each[samples] for each in parts)
        return replace(self, tokens=self.tokens[samples], real=real, types=types, labels=labels)

    def _default_batch(self) -> int:
        return max(1, (1024 if self.device.type == "cpu" else 8192) // self.tokens.shape[1])


def check_order(owner: object) -> None:
    """Checks the fields ``propagate`` and ``sequential``, the order of work, and ``dense_targets``.

    Raises:
        BadSetting: one is unknown, out of range, or without effect beside another.
    """
    check_choice(owner, "propagate", ("pruned", "dense"))
    check_choice(owner, "sequential", ("block", "layer"))
    check_number(owner, "dense_targets", least=0, most=1, hint="0: outputs of the dense weights on pruned inputs")
    if vars(owner)["dense_targets"] and vars(owner)["propagate"] == "dense":
        raise BadSetting(
            owner,
            "dense_targets",
            "is of no effect with propagate=dense, where every layer reads the dense model's inputs; use "
            "propagate=pruned or dense_targets=0",
        )
    if vars(owner)["dense_targets"] and vars(owner)["sequential"] == "block":
        raise BadSetting(
            owner,
            "dense_targets",
            "needs sequential=layer: with sequential=block every layer of a block would make up for the same loss once "
            "more; use sequential=layer or dense_targets=0",
        )
